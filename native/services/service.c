/* SPDX-License-Identifier: Apache-2.0 */
#include "services/service.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "flow/flow_table.h"
#include "services/address.h"
#include "services/quic/quic_routes.h"

int service_validate(const struct service *service)
{
	uint8_t limit = service->family == 6 ? 128 : 32;
	uint64_t address[2], mask[2];

	if ((service->family != 4 && service->family != 6) || service->prefix_length > limit || !service->maglev)
		return -EINVAL;
	if ((service->protocol != 6 && service->protocol != 17) || service->first_port > service->last_port)
		return -EINVAL;
	if (service->quic && service->protocol != 17)
		return -EINVAL;
	if (service->mtu > SERVICE_MTU_MAX) /* segments of a super-packet have buffers of this size */
		return -EINVAL;
	if (service->id > SERVICE_ID_MAX || service->backend_count > FLOW_BACKEND_MAX)
		return -EINVAL;
	address_load(service->family, service->vip, address);
	address_mask(service->prefix_length, mask);
	return (address[0] & ~mask[0]) || (address[1] & ~mask[1]) ? -EINVAL : 0;
}

struct service *service_create(const struct service *service, const struct backend *backends)
{
	/* What a packet reads of it is in its first line. */
	size_t size = sizeof(*service) + service->backend_count * sizeof(*backends);
	struct service *copy = aligned_alloc(CACHE_LINE, (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);

	if (!copy)
		return NULL;
	*copy = *service;
	copy->backends = (struct backend *)(copy + 1);
	if (service->backend_count)
		memcpy(copy->backends, backends, service->backend_count * sizeof(*backends));
	copy->narrow = service_is_exact4(service);
	copy->named = copy->quic != NULL;
	quic_routes_get(copy->quic);
	maglev_get(copy->maglev);
	copy->references = 1;
	return copy;
}

struct service *service_get(struct service *service)
{
	__atomic_fetch_add(&service->references, 1, __ATOMIC_RELAXED);
	return service;
}

void service_put(struct service *service)
{
	if (__atomic_sub_fetch(&service->references, 1, __ATOMIC_ACQ_REL))
		return;
	maglev_put(service->maglev);
	quic_routes_put(service->quic);
	free(service);
}
