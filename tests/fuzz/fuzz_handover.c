/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as what other MUXes tell of their flows: whatever they say, the table stays sound, what is counted is there,
 * and what is unsynchronised can be told and forgotten to the last flow.
 *
 * Input: which snapshots (1 byte), then records as flow_table_scan.h has them.  The records are taken for flows of each service
 * in turn; then the second snapshot is live, and half of them are told once more.
 */
#include "control/adopt_flows.h"
#include "control/flow_table_scan.h"
#include "world.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define RECORDS 4096u

static uint64_t records[RECORDS];
static uint32_t owners[RECORDS];

static void adopt(struct mux *mux, const struct snapshot *snapshot, unsigned backend, uint32_t count)
{
	struct adoption adoption = { 0 };

	for (uint32_t service = 0; service <= SERVICES; service++)
		mux_adopt(mux, snapshot, service, backend, records, count, 0, &adoption);
	expect(adoption.taken + adoption.known + adoption.useless + adoption.refused == count * (SERVICES + 1));
}

/* How many of the table's flows are unsynchronised; counted, and told one by one. */
static uint32_t count_flows(const struct mux *mux, const struct snapshot *snapshot)
{
	struct flow_scan_row rows[SERVICES * BACKENDS] = { 0 };
	uint32_t counted = 0, unsynchronised = 0;

	flow_scan_count(mux, snapshot, rows, SERVICES * BACKENDS);
	for (unsigned i = 0; i < SERVICES * BACKENDS; i++) {
		expect(rows[i].unsynchronised <= rows[i].tcp + rows[i].udp);
		counted += rows[i].tcp + rows[i].udp;
		unsynchronised += rows[i].unsynchronised;
	}
	expect(counted <= flow_table_live(mux->table));
	expect(flow_scan_unsynchronised(mux, snapshot, records, owners, RECORDS) == unsynchronised && unsynchronised <= RECORDS);
	return unsynchronised;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct mux_config config = { .flows = 1, .link = MUX_LINK_NONE };
	static struct mux mux;
	const struct snapshot *snapshot;
	uint32_t count, told;

	if (!size)
		return 0;
	count = (uint32_t)((size - 1) / 8 < ADOPT_MAX ? (size - 1) / 8 : ADOPT_MAX);
	memcpy(records, data + 1, count * 8);
	start_mux(&mux, &config);
	adopt(&mux, snapshot_of(data[0] & 1), data[0] >> 2 & 3, count);
	snapshot = snapshot_of(data[0] >> 1 & 1);
	adopt(&mux, snapshot, data[0] >> 4 & 3, count / 2);
	expect(flow_table_check(mux.table) == NULL);

	told = count_flows(&mux, snapshot);
	for (uint32_t i = 0; i < told; i++)
		expect(mux_forget(&mux, snapshot, owners[i] >> 12, owners[i] & 0xfff, &records[i], 1, 0) == 1);
	expect(flow_table_check(mux.table) == NULL);
	expect(flow_scan_unsynchronised(&mux, snapshot, records, owners, RECORDS) == 0);
	return 0;
}
