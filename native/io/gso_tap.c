/* SPDX-License-Identifier: Apache-2.0 */
/* See gso_tap.h. */
#define _GNU_SOURCE
#include "io/gso_tap.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bpf/tunnel_gso.h"
#include "io/virtio_frame.h"

#define SEND_RETRIES 16u /* a full queue must not hold the worker */

static_assert(sizeof(uint32_t) == TUNNEL_GSO_TAP_EXTRA, "the number of the interface is what the program expects");

void gso_tap_init(struct gso_tap *tap)
{
	*tap = (struct gso_tap){ .fd = -1, .link = -1, .merge = NULL };
}

int gso_tap_open(struct gso_tap *tap, const char *name, bool shared, int program)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	bool first = if_nametoindex(name) == 0;
	int error = 0;

	gso_tap_init(tap);
	if (strlen(name) >= IFNAMSIZ)
		return -ENAMETOOLONG;
	if (shared)
		request.ifr_flags |= IFF_MULTI_QUEUE;
	strcpy(request.ifr_name, name);
	tap->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (tap->fd < 0)
		return -errno;
	tap->merge = merge_create();
	if (!tap->merge)
		error = -ENOMEM;
	else if (ioctl(tap->fd, TUNSETIFF, &request))
		error = -errno;
	if (!error && first) {
		tap->link = tunnel_gso_attach(program, if_nametoindex(name));
		error = tap->link < 0 ? tap->link : 0;
	}
	if (error)
		gso_tap_close(tap);
	return error;
}

int gso_tap_send(const struct gso_tap *tap, const struct frame *frame, uint32_t ifindex)
{
	struct virtio_net_hdr offload;
	struct iovec parts[] = {
		{ &offload, sizeof(offload) },
		{ frame->data, ETH_HLEN },
		{ &ifindex, sizeof(ifindex) },
		{ frame->data + ETH_HLEN, frame->len - ETH_HLEN },
	};

	packet_frame_offload(frame, TUNNEL_GSO_TAP_EXTRA, &offload);
	for (unsigned tries = 0; writev(tap->fd, parts, 4) < 0; tries++)
		if ((errno != EAGAIN && errno != EINTR && errno != ENOBUFS) || tries == SEND_RETRIES)
			return errno;
	return 0;
}

void gso_tap_close(struct gso_tap *tap)
{
	if (tap->link >= 0)
		close(tap->link);
	if (tap->fd >= 0)
		close(tap->fd);
	merge_destroy(tap->merge);
	gso_tap_init(tap);
}
