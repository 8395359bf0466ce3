/* A load generator: one epoll process that sends chat requests and measures the answers.
 *
 *   load port=N bodies=FILE [name=value ...]
 *
 *   conns=64      connections                       seconds=2    length of the measured window
 *   warmup=0.5    before the window                 requests=0   in the window instead of `seconds`, as many requests
 *   rate=0        0: closed loop; else Poisson arrivals per second, latency from the scheduled arrival
 *   stream=0      1: answers are event streams      hold=0       1: one stream per connection, held through the window
 *   ramp=0        seconds over which connections open               first=0   counter of the first request
 *   ordinary=0    1: leave every socket option as it is (Nagle on); else TCP_NODELAY
 *   quickack=0    1: ask for immediate ACKs after every read           batch=0    1: no pre-emption of the workers, which
 *                 run on the same processor: with many answers at a time that saves half of the switches between them
 *
 * FILE has one JSON body per line, each with a marker of twelve '~' that is overwritten by a counter. Prints
 * {"phase":"window"} when the window opens, {"phase":"end"} when it closes, and then one JSON line of results.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MARKER 12
#define SUB_BITS 7
#define BUCKETS (64 << SUB_BITS)
#define EVENT_ROOM 4096
#define HEAD_ROOM 16384

/* Values below 2^SUB_BITS exactly, above with a relative error under 1 %. */
struct histogram { uint64_t count, sum, max; uint32_t bucket[BUCKETS]; };

struct body { char *text; size_t len, marker; };

enum state { IDLE, CONNECTING, HEAD, FIXED, SIZE, SIZE_LF, DATA, DATA_END, TRAILER };

struct conn {
    int fd;
    enum state state;
    uint64_t started;
    size_t left;             /* bytes of the body or chunk still to come */
    size_t line;             /* characters in the current trailer line */
    int first_seen, closing, busy, in_window;
    char *head;
    size_t head_len;
    char *event;
    size_t event_len;
    char *out;
    size_t out_len, out_sent;
};

static struct body *bodies;
static int nbodies;
static struct conn *conns;
static int nconns = 64, stream, hold, ordinary, quickack, batch, port, epoll_fd, timer_fd;
static double seconds = 2, warmup = 0.5, rate, ramp;
static uint64_t first, sent_requests, wanted;

static struct histogram latency, ttft, delay;
static uint64_t done, issued, events, refused, bad_status, bad_framing, broken, ended, opened;
static int measuring, stopping, inflight, last_status;

static uint64_t *backlog;    /* scheduled arrivals that found no idle connection, in order */
static size_t backlog_head, backlog_len, backlog_room;
static int *idle, idle_len;

static void die(const char *what) { perror(what); exit(1); }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *grown(void *old, size_t size) {
    void *block = realloc(old, size);
    if (!block) die("realloc");
    return block;
}

/* --- figures --------------------------------------------------------------------------------------------------- */

static void note(struct histogram *into, uint64_t value) {
    uint32_t at = (uint32_t)value;
    if (value >= 1u << SUB_BITS) {
        int shift = 63 - __builtin_clzll(value) - SUB_BITS;
        at = (uint32_t)(((uint64_t)(shift + 1) << SUB_BITS) + ((value >> shift) & ((1u << SUB_BITS) - 1)));
    }
    into->bucket[at]++;
    into->count++;
    into->sum += value;
    if (value > into->max) into->max = value;
}

static double quantile(const struct histogram *of, double share) {
    uint64_t target = (uint64_t)ceil(share * (double)of->count), seen = 0;
    for (uint32_t at = 0; at < BUCKETS; at++) {
        seen += of->bucket[at];
        if (!of->count || seen < target) continue;
        if (at < 1u << SUB_BITS) return at;
        int shift = (int)(at >> SUB_BITS) - 1;
        return (double)((((uint64_t)1 << SUB_BITS) + (at & ((1u << SUB_BITS) - 1))) << shift) + ldexp(0.5, shift);
    }
    return 0;
}

static void print_histogram(const char *name, const struct histogram *of) {
    printf(",\"%s\":{\"count\":%llu,\"mean\":%.2f,\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"max\":%.2f}", name,
           (unsigned long long)of->count, of->count ? (double)of->sum / (double)of->count / 1e3 : 0,
           quantile(of, 0.5) / 1e3, quantile(of, 0.9) / 1e3, quantile(of, 0.99) / 1e3, (double)of->max / 1e3);
}

/* --- requests -------------------------------------------------------------------------------------------------- */

static void load_bodies(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    char *line = NULL;
    size_t room = 0;
    ssize_t len;
    while ((len = getline(&line, &room, file)) > 0) {
        if (line[len - 1] == '\n') len--;
        bodies = grown(bodies, sizeof *bodies * (size_t)(nbodies + 1));
        struct body *body = &bodies[nbodies++];
        body->text = grown(NULL, (size_t)len + 512);
        int head = snprintf(body->text, 512,
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: load/1\r\nAccept: */*\r\n"
            "Content-Type: application/json\r\nContent-Length: %zd\r\n\r\n", port, len);
        memcpy(body->text + head, line, (size_t)len);
        body->len = (size_t)head + (size_t)len;
        char *marker = memmem(body->text, body->len, "~~~~~~~~~~~~", MARKER);
        if (!marker) { fprintf(stderr, "body %d has no marker\n", nbodies); exit(2); }
        body->marker = (size_t)(marker - body->text);
    }
    fclose(file);
    free(line);
    if (!nbodies) { fprintf(stderr, "no bodies\n"); exit(2); }
}

static void watch(struct conn *conn, uint32_t mask, int how) {
    struct epoll_event event = {.events = mask, .data.ptr = conn};
    epoll_ctl(epoll_fd, how, conn->fd, &event);
}

static void lost(struct conn *conn);

static void issue(struct conn *conn, uint64_t scheduled) {
    static const char hex[] = "0123456789abcdef";
    struct body *body = &bodies[sent_requests % (uint64_t)nbodies];
    uint64_t counter = first + sent_requests++;
    for (int digit = MARKER - 1; digit >= 0; digit--, counter >>= 4) body->text[body->marker + (size_t)digit] = hex[counter & 15];
    conn->state = HEAD;
    conn->busy = 1;
    conn->first_seen = conn->closing = 0;
    conn->head_len = conn->event_len = 0;
    conn->in_window = measuring;
    conn->started = scheduled ? scheduled : now_ns();
    inflight++;
    if (measuring) issued++;
    ssize_t sent = send(conn->fd, body->text, body->len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == (ssize_t)body->len) return;
    if (sent < 0) {
        if (errno != EAGAIN) { lost(conn); return; }
        sent = 0;
    }
    conn->out_len = body->len - (size_t)sent;
    conn->out_sent = 0;
    conn->out = grown(conn->out, conn->out_len);
    memcpy(conn->out, body->text + sent, conn->out_len);
    watch(conn, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
}

static void may_issue(struct conn *conn) {
    conn->state = IDLE;
    if (stopping) return;
    if (rate > 0) {
        if (backlog_len) {
            uint64_t scheduled = backlog[backlog_head++ % backlog_room];
            backlog_len--;
            issue(conn, scheduled);
        } else {
            idle[idle_len++] = (int)(conn - conns);
        }
    } else if (!(wanted && measuring && issued >= wanted)) {
        issue(conn, 0);
    }
}

static void connect_one(struct conn *conn) {
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0) die("socket");
    int one = 1;
    if (!ordinary) setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    conn->state = CONNECTING;
    opened++;
    if (connect(conn->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    watch(conn, EPOLLOUT, EPOLL_CTL_ADD);
}

/* The connection ended, or cannot be used any more. */
static void lost(struct conn *conn) {
    int was_busy = conn->busy || conn->state == CONNECTING;
    if (conn->state == CONNECTING) refused++;
    if (conn->busy) { inflight--; broken++; }
    conn->busy = 0;
    close(conn->fd);
    conn->fd = -1;
    free(conn->out);
    conn->out = NULL;
    conn->out_len = conn->out_sent = 0;
    if (conn->state == IDLE && rate > 0)
        for (int i = 0; i < idle_len; i++) if (conns + idle[i] == conn) { idle[i] = idle[--idle_len]; break; }
    conn->state = IDLE;
    if (refused + broken > 100000) { fprintf(stderr, "gave up: %llu refused, %llu broken\n",
        (unsigned long long)refused, (unsigned long long)broken); exit(3); }
    if (!stopping && !(hold && was_busy)) connect_one(conn);
}

static void finished(struct conn *conn) {
    uint64_t took = now_ns() - conn->started;
    conn->busy = 0;
    inflight--;
    if (conn->in_window && measuring) { done++; note(&latency, took); }
    if (hold) ended++;
    if (conn->closing) { conn->state = IDLE; lost(conn); return; }
    if (!hold) may_issue(conn);
    else conn->state = IDLE;
}

/* --- answers --------------------------------------------------------------------------------------------------- */

static void one_event(struct conn *conn, const char *text, size_t len, uint64_t now) {
    if (len == 14 && !memcmp(text, "data: [DONE]", 12)) return;
    if (!conn->first_seen) {
        conn->first_seen = 1;
        if (measuring && conn->in_window) note(&ttft, now - conn->started);
    }
    if (!measuring) return;
    events++;
    const char *stamp = memmem(text, len, "\"t=", 3);
    if (!stamp || stamp + 19 > text + len) return;
    uint64_t sent = 0;
    for (int i = 3; i < 19; i++) sent = sent << 4 | (uint64_t)(stamp[i] <= '9' ? stamp[i] - '0' : stamp[i] - 'a' + 10);
    note(&delay, now > sent ? now - sent : 0);
}

static void payload(struct conn *conn, const char *text, size_t len, uint64_t now) {
    if (!stream) return;
    if (conn->event_len) { /* the end of an event whose beginning came in an earlier read */
        size_t fits = EVENT_ROOM - conn->event_len, old = conn->event_len;
        size_t take = len < fits ? len : fits;
        memcpy(conn->event + old, text, take);
        size_t from = old ? old - 1 : 0;
        char *end = memmem(conn->event + from, old + take - from, "\n\n", 2);
        if (!end) {
            conn->event_len = old + take;
            if (take < len) { bad_framing++; conn->event_len = 0; }
            return;
        }
        size_t size = (size_t)(end - conn->event) + 2;
        one_event(conn, conn->event, size, now);
        conn->event_len = 0;
        text += size - old;
        len -= size - old;
    }
    for (const char *end; (end = memmem(text, len, "\n\n", 2));) {
        size_t size = (size_t)(end - text) + 2;
        one_event(conn, text, size, now);
        text += size;
        len -= size;
    }
    if (!len) return;
    if (len > EVENT_ROOM) { bad_framing++; return; }
    if (!conn->event) conn->event = grown(NULL, EVENT_ROOM);
    memcpy(conn->event, text, len);
    conn->event_len = len;
}

/* Reads a whole head at `text`; returns its length, or 0 where it is not whole yet. */
static size_t head_of(struct conn *conn, const char *text, size_t len) {
    const char *end = memmem(text, len, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t size = (size_t)(end - text) + 4;
    int status = size > 12 ? atoi(text + 9) : 0;
    if (status == 100) return size;
    if (status != 200) { bad_status++; last_status = status; }
    conn->state = TRAILER; /* overwritten below; left only by a head without a length */
    int framed = 0;
    for (const char *line = memchr(text, '\n', size); line && line < end; line = memchr(line + 1, '\n', size - (size_t)(line + 1 - text))) {
        if (!strncasecmp(line + 1, "content-length:", 15)) {
            framed = 1;
            conn->left = strtoul(line + 16, NULL, 10);
            conn->state = FIXED;
        } else if (!strncasecmp(line + 1, "transfer-encoding: chunked", 26)) {
            framed = 1;
            conn->left = 0;
            conn->state = SIZE;
        } else if (!strncasecmp(line + 1, "connection: close", 17)) {
            conn->closing = 1;
        }
    }
    if (!framed) { bad_framing++; lost(conn); }
    return size;
}

static void feed(struct conn *conn, const char *text, size_t len) {
    uint64_t now = stream ? now_ns() : 0;
    while (len) {
        size_t used = 1;
        switch (conn->state) {
        case HEAD:
            if (conn->head_len) {
                size_t old = conn->head_len, take = len < HEAD_ROOM - old ? len : HEAD_ROOM - old;
                memcpy(conn->head + old, text, take);
                used = head_of(conn, conn->head, old + take);
                if (conn->fd < 0) return;
                if (!used) {
                    conn->head_len = old + take;
                    if (take < len) { bad_framing++; lost(conn); }
                    return;
                }
                used -= old;
                conn->head_len = 0;
            } else {
                used = head_of(conn, text, len);
                if (conn->fd < 0) return;
                if (!used) {
                    if (len > HEAD_ROOM) { bad_framing++; lost(conn); return; }
                    if (!conn->head) conn->head = grown(NULL, HEAD_ROOM);
                    memcpy(conn->head, text, len);
                    conn->head_len = len;
                    return;
                }
            }
            if (conn->state == FIXED && !conn->left) { finished(conn); if (used < len) bad_framing++; return; }
            break;
        case FIXED:
            used = len < conn->left ? len : conn->left;
            payload(conn, text, used, now);
            conn->left -= used;
            if (!conn->left) { finished(conn); if (used < len) bad_framing++; return; }
            break;
        case SIZE:
            if (*text == '\r') conn->state = SIZE_LF;
            else if (*text >= '0' && *text <= '9') conn->left = conn->left << 4 | (size_t)(*text - '0');
            else if ((*text | 32) >= 'a' && (*text | 32) <= 'f') conn->left = conn->left << 4 | (size_t)((*text | 32) - 'a' + 10);
            else { bad_framing++; lost(conn); return; }
            break;
        case SIZE_LF:
            if (*text != '\n') { bad_framing++; lost(conn); return; }
            conn->state = conn->left ? DATA : TRAILER;
            conn->line = 0;
            break;
        case DATA:
            used = len < conn->left ? len : conn->left;
            payload(conn, text, used, now);
            conn->left -= used;
            if (!conn->left) conn->state = DATA_END;
            break;
        case DATA_END:
            if (*text == '\n') conn->state = SIZE;
            else if (*text != '\r') { bad_framing++; lost(conn); return; }
            break;
        case TRAILER:
            if (*text == '\n') {
                if (!conn->line) { finished(conn); if (used < len) bad_framing++; return; }
                conn->line = 0;
            } else if (*text != '\r') {
                conn->line++;
            }
            break;
        default: /* bytes nobody asked for */
            bad_framing++;
            lost(conn);
            return;
        }
        text += used;
        len -= used;
    }
}

static void readable(struct conn *conn) {
    static char buffer[1 << 18];
    ssize_t got = recv(conn->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got > 0) {
        feed(conn, buffer, (size_t)got);
        int one = 1;
        if (quickack && conn->fd >= 0) setsockopt(conn->fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        lost(conn);
    }
}

static void ready(struct conn *conn, uint32_t mask) {
    if (conn->fd < 0) return;
    if (conn->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) { lost(conn); return; }
        watch(conn, EPOLLIN, EPOLL_CTL_MOD);
        may_issue(conn);
        return;
    }
    if (mask & EPOLLOUT && conn->out_len > conn->out_sent) {
        ssize_t sent = send(conn->fd, conn->out + conn->out_sent, conn->out_len - conn->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) { lost(conn); return; }
        if (sent > 0) conn->out_sent += (size_t)sent;
        if (conn->out_sent == conn->out_len) { conn->out_sent = conn->out_len = 0; watch(conn, EPOLLIN, EPOLL_CTL_MOD); }
    }
    if (mask & ~EPOLLOUT) readable(conn);
}

/* --- the run --------------------------------------------------------------------------------------------------- */

static double random_gap(void) { return -log1p(-drand48()) / rate * 1e9; }

static void arrival(uint64_t scheduled) {
    if (idle_len) { issue(&conns[idle[--idle_len]], scheduled); return; }
    if (backlog_len == backlog_room) {
        size_t room = backlog_room ? backlog_room * 2 : 4096;
        uint64_t *fresh = grown(NULL, room * sizeof *fresh);
        for (size_t i = 0; i < backlog_len; i++) fresh[i] = backlog[(backlog_head + i) % backlog_room];
        free(backlog);
        backlog = fresh;
        backlog_head = 0;
        backlog_room = room;
    }
    backlog[(backlog_head + backlog_len++) % backlog_room] = scheduled;
}

static void wait_until(uint64_t until) {
    static struct epoll_event ready_now[512];
    struct itimerspec when = {{0, 0}, {(time_t)(until / 1000000000u), (long)(until % 1000000000u)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
    int count = epoll_wait(epoll_fd, ready_now, 512, -1);
    for (int i = 0; i < count; i++) {
        if (ready_now[i].data.ptr) ready(ready_now[i].data.ptr, ready_now[i].events);
        else { uint64_t times; if (read(timer_fd, &times, 8) < 0) continue; }
    }
}

static void phase(const char *name) {
    printf("{\"phase\":\"%s\"}\n", name);
    fflush(stdout);
}

int main(int argc, char **argv) {
    const char *path = NULL;
    for (int i = 1; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) { fprintf(stderr, "name=value, not %s\n", argv[i]); return 2; }
        *value++ = 0;
        const char *name = argv[i];
        if (!strcmp(name, "port")) port = atoi(value);
        else if (!strcmp(name, "bodies")) path = value;
        else if (!strcmp(name, "conns")) nconns = atoi(value);
        else if (!strcmp(name, "seconds")) seconds = atof(value);
        else if (!strcmp(name, "warmup")) warmup = atof(value);
        else if (!strcmp(name, "requests")) wanted = strtoull(value, NULL, 10);
        else if (!strcmp(name, "rate")) rate = atof(value);
        else if (!strcmp(name, "stream")) stream = atoi(value);
        else if (!strcmp(name, "hold")) hold = stream = atoi(value);
        else if (!strcmp(name, "ramp")) ramp = atof(value);
        else if (!strcmp(name, "first")) first = strtoull(value, NULL, 10);
        else if (!strcmp(name, "ordinary")) ordinary = atoi(value);
        else if (!strcmp(name, "quickack")) quickack = atoi(value);
        else if (!strcmp(name, "batch")) batch = atoi(value);
        else { fprintf(stderr, "unknown: %s\n", name); return 2; }
    }
    struct sched_param priority = {0};
    if (batch) sched_setscheduler(0, SCHED_BATCH, &priority);
    if (!port || !path || nconns < 1) { fprintf(stderr, "port= and bodies= are required\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    srand48((long)(first + 1));
    load_bodies(path);
    conns = calloc((size_t)nconns, sizeof *conns);
    idle = calloc((size_t)nconns, sizeof *idle);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);

    uint64_t start = now_ns(), opens_at = start + (uint64_t)((ramp + warmup) * 1e9), closes_at = 0, opened_at = 0;
    uint64_t next_arrival = start;
    int started = 0;
    for (;;) {
        uint64_t now = now_ns(), until = now + 50000000;
        while (started < nconns) {
            uint64_t due = start + (uint64_t)(ramp * 1e9 * started / nconns);
            if (due > now) { if (due < until) until = due; break; }
            connect_one(&conns[started++]);
        }
        if (!measuring && now >= opens_at) {
            measuring = 1;
            opened_at = now;
            closes_at = now + (uint64_t)(seconds * 1e9);
            phase("window");
        }
        if (measuring && (wanted ? done >= wanted : now >= closes_at)) break;
        if (measuring && wanted && issued >= wanted && !inflight) break; /* some were lost on the way */
        if (rate > 0) {
            for (; next_arrival <= now; next_arrival += (uint64_t)random_gap()) arrival(next_arrival);
            if (next_arrival < until) until = next_arrival;
        }
        uint64_t edge = measuring ? (wanted ? until : closes_at) : opens_at;
        if (edge < until) until = edge;
        wait_until(until);
    }
    uint64_t closed_at = now_ns();
    phase("end");
    measuring = 0;
    stopping = 1;
    int held = 0;
    for (int i = 0; i < nconns; i++) held += conns[i].busy;
    uint64_t backlog_left = backlog_len;
    uint64_t broken_in_run = broken;
    if (!hold)
        for (uint64_t limit = now_ns() + 3000000000u; inflight > 0 && now_ns() < limit;) wait_until(now_ns() + 20000000);
    double window = (double)(closed_at - opened_at) / 1e9;
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    printf("{\"seconds\":%.6f,\"done\":%llu,\"rps\":%.2f,\"events\":%llu,\"events_per_s\":%.1f,\"held\":%d,\"ended\":%llu,"
           "\"broken\":%llu,\"refused\":%llu,\"bad_status\":%llu,\"last_status\":%d,\"bad_framing\":%llu,\"opened\":%llu,"
           "\"sent\":%llu,\"unanswered\":%d,\"backlog\":%llu,\"cpu_secs\":%.3f",
           window, (unsigned long long)done, (double)done / window, (unsigned long long)events, (double)events / window,
           held, (unsigned long long)ended, (unsigned long long)broken_in_run, (unsigned long long)refused,
           (unsigned long long)bad_status, last_status, (unsigned long long)bad_framing, (unsigned long long)opened,
           (unsigned long long)sent_requests, hold ? 0 : inflight, (unsigned long long)backlog_left,
           (double)use.ru_utime.tv_sec + (double)use.ru_utime.tv_usec / 1e6 + (double)use.ru_stime.tv_sec + (double)use.ru_stime.tv_usec / 1e6);
    print_histogram("latency_us", &latency);
    print_histogram("ttft_us", &ttft);
    print_histogram("delay_us", &delay);
    printf("}\n");
    return 0;
}
