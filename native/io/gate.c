/* SPDX-License-Identifier: Apache-2.0 */
/* See gate.h. */
#define _GNU_SOURCE
#include "io/gate.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bpf/whole.h"
#include "io/packet_frame.h"

#define SEND_RETRIES 16u /* a full queue must not hold the worker */

static_assert(sizeof(uint32_t) == WHOLE_GATE_EXTRA, "the number of the interface is what the program expects");

void gate_init(struct gate *gate)
{
	*gate = (struct gate){ .fd = -1, .link = -1, .merge = NULL };
}

int gate_open(struct gate *gate, const char *name, bool shared, int program)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	bool first = if_nametoindex(name) == 0;
	int error = 0;

	gate_init(gate);
	if (strlen(name) >= IFNAMSIZ)
		return -ENAMETOOLONG;
	if (shared)
		request.ifr_flags |= IFF_MULTI_QUEUE;
	strcpy(request.ifr_name, name);
	gate->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (gate->fd < 0)
		return -errno;
	gate->merge = merge_create();
	if (!gate->merge)
		error = -ENOMEM;
	else if (ioctl(gate->fd, TUNSETIFF, &request))
		error = -errno;
	if (!error && first) {
		gate->link = whole_attach(program, if_nametoindex(name));
		error = gate->link < 0 ? gate->link : 0;
	}
	if (error)
		gate_close(gate);
	return error;
}

int gate_send(const struct gate *gate, const struct frame *frame, uint32_t ifindex)
{
	struct virtio_net_hdr offload;
	struct iovec parts[] = {
		{ &offload, sizeof(offload) },
		{ frame->data, ETH_HLEN },
		{ &ifindex, sizeof(ifindex) },
		{ frame->data + ETH_HLEN, frame->len - ETH_HLEN },
	};

	packet_frame_offload(frame, WHOLE_GATE_EXTRA, &offload);
	for (unsigned tries = 0; writev(gate->fd, parts, 4) < 0; tries++)
		if ((errno != EAGAIN && errno != EINTR && errno != ENOBUFS) || tries == SEND_RETRIES)
			return errno;
	return 0;
}

void gate_close(struct gate *gate)
{
	if (gate->link >= 0)
		close(gate->link);
	if (gate->fd >= 0)
		close(gate->fd);
	merge_destroy(gate->merge);
	gate_init(gate);
}
