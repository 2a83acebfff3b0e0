/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Flow tables whose memory outlives the process: a file without a disk below it (tmpfs, memfd), shared with whoever opens it next.
 *
 * The file is the lines of flow_table.h and behind them a page that says what they are: the version of their layout, their number,
 * and a mark of the pool's seed, without which keys mean nothing.  What the numbers in entries stand for is not in it: whoever opens
 * a table must give services and backends the numbers that they had (lb/dataplane/compile/numbers.py).
 *
 * A process may die at any instruction.  Each entry is one aligned word, so it is there or it is not; a flow that was being moved to
 * its other line just then may be there twice or not be found by its key.  So an opened table is for looking into and for taking over
 * (sibling_tables.h, regroup_flows.h), never for writing.  Ages hold: stamps are of CLOCK_MONOTONIC, and the file goes
 * with the boot.
 */
#ifndef VIPMUX_KEPT_TABLE_H
#define VIPMUX_KEPT_TABLE_H

#include <stdint.h>

#include "flow/flow_table.h"

/* To be raised with every change of what an entry, a stamp, a line or a key is, or of how keys are scrambled and placed. */
#define KEPT_TABLE_LAYOUT 1u

/* A number that tells seeds (16 bytes) apart and nothing about them. */
uint64_t kept_table_mark(const uint8_t *seed);

/*
 * As flow_table_create(), in an empty file, which may be closed then.  Its memory is taken at once, so that no packet meets a full
 * file system.  Negative errno: -ENOSPC and others of the file system; -ENOMEM.
 */
int kept_table_create(int fd, uint64_t mark, uint64_t flows, struct flow_table **out);

/*
 * The table in a file.  -EBADMSG: no whole table, as of a process that died before it was made; -EPROTONOSUPPORT: of another layout;
 * -EKEYREJECTED: of another seed; others of the file system.
 */
int kept_table_open(int fd, uint64_t mark, struct flow_table **out);

#endif
