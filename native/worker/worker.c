/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's loop and its two mailboxes, the published snapshot and one function call.  See worker.h for who calls
 * what.  The worker itself takes no lock, allocates nothing and logs nothing; `control` is for control threads only.
 */
#define _GNU_SOURCE
#include "worker/worker.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "services/snapshot/snapshot.h"
#include "worker/worker_pace.h"

#define IDLE_MS 100
#define WORKER_NICE (-10)

/* A snapshot that was replaced when the worker's count of bursts was `burst`. */
struct retired {
	struct retired *next;
	struct snapshot *snapshot;
	uint64_t burst;
};

enum call_state {
	CALL_NONE,
	CALL_POSTED,
	CALL_RUNNING,
};

struct worker {
	struct pipeline *pipeline;
	struct io *io;
	_Atomic(struct snapshot *) published;
	_Atomic uint64_t bursts;
	_Atomic uint64_t errors;
	_Atomic int error;
	_Atomic bool stopping;

	_Atomic int call;
	void (*function)(void *argument);
	void *argument;

	struct pace pace; /* the worker's own */

	int wake_fd; /* written by control threads, ends the worker's sleep */
	int done_fd; /* written by the worker when a call ran */
	int cpu;
	pid_t process; /* the thread's: a forked child has none */

	pthread_mutex_t control; /* guards what follows; one publish, call, start or stop at a time */
	pthread_t thread;
	bool running;
	struct retired *retired;
};

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void signal_fd(int fd)
{
	uint64_t one = 1;
	ssize_t ignored = write(fd, &one, sizeof(one)); /* fails only when it is readable already */

	(void)ignored;
}

static void clear_fd(int fd)
{
	uint64_t count;
	ssize_t ignored = read(fd, &count, sizeof(count)); /* fails only when it was not readable */

	(void)ignored;
}

static void run_call(struct worker *worker)
{
	int posted = CALL_POSTED;

	if (atomic_load_explicit(&worker->call, memory_order_relaxed) != CALL_POSTED)
		return;
	if (!atomic_compare_exchange_strong(&worker->call, &posted, CALL_RUNNING))
		return;
	worker->function(worker->argument);
	atomic_store(&worker->call, CALL_NONE);
	signal_fd(worker->done_fd);
}

static void rest(struct worker *worker, bool broken)
{
	struct pollfd wake = {.fd = worker->wake_fd, .events = POLLIN};
	struct timespec pause = { .tv_nsec = worker->io->never_rests ? 0 : pace_pause(&worker->pace) };

	if (broken) { /* an io that fails may also fail to sleep: never spin on it */
		poll(&wake, 1, IDLE_MS);
	} else if (pause.tv_nsec) {
		if (ppoll(&wake, 1, &pause, NULL) <= 0)
			return;
	} else {
		worker->io->ops->wait(worker->io, worker->wake_fd, IDLE_MS);
	}
	clear_fd(worker->wake_fd);
}

static void one_burst(struct worker *worker)
{
	struct frame frames[BURST_MAX];
	struct io *io = worker->io;
	const struct snapshot *snapshot;
	uint64_t now;
	int count;

	/* Counted before the snapshot is loaded, both sequentially consistent: a publisher that reads N here after
	 * its exchange knows that burst N+1 and all later ones see the new snapshot. */
	atomic_fetch_add(&worker->bursts, 1);
	snapshot = atomic_load(&worker->published);

	count = io->ops->receive(io, frames, BURST_MAX);
	now = now_ns();
	if (count > 0) {
		worker->pipeline->burst(worker->pipeline, snapshot, io, frames, (unsigned)count, now);
		io->ops->release(io);
		if (atomic_load_explicit(&worker->error, memory_order_relaxed))
			atomic_store_explicit(&worker->error, 0, memory_order_relaxed);
	} else if (count < 0) {
		atomic_fetch_add_explicit(&worker->errors, 1, memory_order_relaxed);
		atomic_store_explicit(&worker->error, -count, memory_order_relaxed);
	}
	worker->pipeline->tick(worker->pipeline, snapshot, now);
	run_call(worker);
	pace_count(&worker->pace, count > 0 ? (unsigned)count : 0, now);
	if (count <= 0)
		rest(worker, count < 0);
}

static void *worker_main(void *argument)
{
	struct worker *worker = argument;

	pthread_setname_np(pthread_self(), "lb-worker");
	/* Packets go before whatever else runs here, above all our own threads when they read a file; but for what
	 * keeps us alive to others, see lb/daemon/process/priority.py.  Without CAP_SYS_NICE all are equal, and that is all. */
	setpriority(PRIO_PROCESS, (id_t)gettid(), WORKER_NICE);
	prctl(PR_SET_TIMERSLACK, 1ul); /* a pause is as short as it is meant, not 50 us longer */
	if (worker->pipeline->warm)
		worker->pipeline->warm(worker->pipeline);
	while (!atomic_load_explicit(&worker->stopping, memory_order_relaxed))
		one_burst(worker);
	return NULL;
}

int worker_create(struct pipeline *pipeline, struct io *io, struct snapshot *snapshot, int cpu, struct worker **out)
{
	struct worker *worker = calloc(1, sizeof(*worker));

	if (!worker)
		return -ENOMEM;
	worker->cpu = cpu;
	worker->pace = (struct pace)PACE_START;
	worker->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	worker->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (worker->wake_fd < 0 || worker->done_fd < 0) {
		int error = -errno;

		if (worker->wake_fd >= 0)
			close(worker->wake_fd);
		if (worker->done_fd >= 0)
			close(worker->done_fd);
		free(worker);
		return error;
	}
	worker->pipeline = pipeline_get(pipeline);
	worker->io = io_get(io);
	pthread_mutex_init(&worker->control, NULL);
	atomic_init(&worker->published, snapshot ? snapshot_get(snapshot) : NULL);
	*out = worker;
	return 0;
}

/* There is a thread, and in this process. */
static bool is_running(const struct worker *worker)
{
	return worker->running && worker->process == getpid();
}

/* All signals stay with the threads of Python: the worker is created with every one blocked. */
static int create_thread(struct worker *worker, const pthread_attr_t *attributes)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&worker->thread, attributes, worker_main, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

int worker_start(struct worker *worker)
{
	pthread_attr_t attributes;
	int error = 0;

	pthread_mutex_lock(&worker->control);
	if (is_running(worker))
		goto out;
	pthread_attr_init(&attributes);
	if (worker->cpu >= 0) {
		cpu_set_t cpus;

		if (worker->cpu >= CPU_SETSIZE) {
			error = -EINVAL;
			goto out_attributes;
		}
		CPU_ZERO(&cpus);
		CPU_SET((unsigned)worker->cpu, &cpus);
		pthread_attr_setaffinity_np(&attributes, sizeof(cpus), &cpus);
	}
	atomic_store(&worker->stopping, false);
	error = create_thread(worker, &attributes);
	worker->running = error == 0;
	worker->process = getpid();
out_attributes:
	pthread_attr_destroy(&attributes);
out:
	pthread_mutex_unlock(&worker->control);
	return error;
}

static unsigned reclaim_locked(struct worker *worker)
{
	uint64_t begun = atomic_load(&worker->bursts);
	struct retired **link = &worker->retired;
	unsigned remaining = 0;

	while (*link) {
		struct retired *retired = *link;

		if (is_running(worker) && begun <= retired->burst) {
			link = &retired->next;
			remaining++;
			continue;
		}
		*link = retired->next;
		if (retired->snapshot)
			snapshot_put(retired->snapshot);
		free(retired);
	}
	return remaining;
}

int worker_publish(struct worker *worker, struct snapshot *snapshot)
{
	struct retired *retired = malloc(sizeof(*retired));

	if (!retired)
		return -ENOMEM;
	pthread_mutex_lock(&worker->control);
	retired->snapshot = atomic_exchange(&worker->published, snapshot ? snapshot_get(snapshot) : NULL);
	retired->burst = atomic_load(&worker->bursts);
	retired->next = worker->retired;
	worker->retired = retired;
	reclaim_locked(worker);
	pthread_mutex_unlock(&worker->control);
	signal_fd(worker->wake_fd);
	return 0;
}

unsigned worker_reclaim(struct worker *worker)
{
	unsigned remaining;

	pthread_mutex_lock(&worker->control);
	remaining = reclaim_locked(worker);
	pthread_mutex_unlock(&worker->control);
	return remaining;
}

/* Whether the file became readable in time, however often signals disturb. */
static bool readable_within(int fd, int timeout_ms)
{
	struct pollfd file = {.fd = fd, .events = POLLIN};
	uint64_t end = now_ns() + (uint64_t)timeout_ms * 1000000u;

	for (;;) {
		uint64_t now = now_ns();
		int left = now < end ? (int)((end - now + 999999) / 1000000) : 0;

		if (poll(&file, 1, left) >= 0 || errno != EINTR)
			return file.revents & POLLIN;
		if (!left)
			return false;
	}
}

static int call_locked(struct worker *worker, void (*function)(void *argument), void *argument, int timeout_ms)
{
	struct pollfd done = {.fd = worker->done_fd, .events = POLLIN};
	int posted = CALL_POSTED;

	if (!is_running(worker)) {
		function(argument);
		return 0;
	}
	worker->function = function;
	worker->argument = argument;
	atomic_store(&worker->call, CALL_POSTED);
	signal_fd(worker->wake_fd);
	if (!readable_within(worker->done_fd, timeout_ms)) {
		if (atomic_compare_exchange_strong(&worker->call, &posted, CALL_NONE))
			return -ETIMEDOUT;
		/* It has begun after all, and the argument is in use: it ends soon. */
		while (poll(&done, 1, -1) < 0 && errno == EINTR)
			continue;
	}
	clear_fd(worker->done_fd);
	return 0;
}

int worker_call(struct worker *worker, void (*function)(void *argument), void *argument, int timeout_ms)
{
	int error;

	pthread_mutex_lock(&worker->control);
	error = call_locked(worker, function, argument, timeout_ms);
	pthread_mutex_unlock(&worker->control);
	return error;
}

void worker_counters(struct worker *worker, struct worker_counters *out)
{
	unsigned remaining = 0;

	pthread_mutex_lock(&worker->control);
	for (const struct retired *retired = worker->retired; retired; retired = retired->next)
		remaining++;
	out->running = is_running(worker);
	pthread_mutex_unlock(&worker->control);
	out->retired = remaining;
	out->bursts = atomic_load_explicit(&worker->bursts, memory_order_relaxed);
	out->errors = atomic_load_explicit(&worker->errors, memory_order_relaxed);
	out->error = atomic_load_explicit(&worker->error, memory_order_relaxed);
}

int worker_stop(struct worker *worker)
{
	int error = 0;

	pthread_mutex_lock(&worker->control);
	if (is_running(worker)) {
		atomic_store(&worker->stopping, true);
		signal_fd(worker->wake_fd);
		error = -pthread_join(worker->thread, NULL);
	}
	worker->running = false;
	reclaim_locked(worker);
	pthread_mutex_unlock(&worker->control);
	return error;
}

void worker_destroy(struct worker *worker)
{
	struct snapshot *snapshot;

	if (!worker)
		return;
	worker_stop(worker);
	reclaim_locked(worker);
	snapshot = atomic_load(&worker->published);
	if (snapshot)
		snapshot_put(snapshot);
	pipeline_put(worker->pipeline);
	io_put(worker->io);
	pthread_mutex_destroy(&worker->control);
	close(worker->wake_fd);
	close(worker->done_fd);
	free(worker);
}
