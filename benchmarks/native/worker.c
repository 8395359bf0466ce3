/* A fleet of fake workers: one epoll process, one listening port per worker.
 *
 *   worker DIR:PORT [DIR:PORT ...]
 *
 * GET answers come from files in the worker's DIR, a '~' in a file's name standing for '/' (~v1~models). Every POST
 * whose body says "stream":true is answered with server-sent events, any other with one JSON object. Standard input
 * takes one setting per line and answers "ok"; its end ends the process:
 *   events N    events of a stream before [DONE]          gap US    between two events
 *   spread 0|1  first event at a random part of the gap   cached N  report N cached tokens (-1: report none)
 *   stats       one JSON line instead of "ok"
 * Each event carries the monotonic clock at its sending, in 16 hexadecimal digits after "t=".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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

#define MAX_WORKERS 512
#define MAX_BODY (64 << 20)

struct page { char *path; char *reply; size_t len; };
struct worker { int fd; struct page *pages; int npages; uint64_t requests, streams; };

struct conn {
    int worker;            /* -1: not a connection */
    uint32_t generation;   /* a timer of an earlier connection with this descriptor must not fire */
    int streaming;
    int left;              /* events still to send */
    uint64_t due;
    char *in;
    size_t have, room;
    char *out;
    size_t out_len, out_sent, out_room;
    int wants_write;
};

struct timer { uint64_t due; int fd; uint32_t generation; };

static struct worker workers[MAX_WORKERS];
static int nworkers;
static struct conn *conns;
static int max_fds, epoll_fd, timer_fd, active_streams, open_conns;
static struct timer *heap;
static int heap_len, heap_room;
static uint64_t armed;

static int stream_events = 16, spread, cached = -1;
static uint64_t gap_ns = 1000000;

static char json_reply[2048];
static size_t json_len;
static char event_text[1024];
static size_t event_len, stamp_at;
static char last_text[2048];
static size_t last_len;

static const char sse_head[] =
    "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

static void die(const char *what) { perror(what); exit(1); }

static void *grown(void *old, size_t size) {
    void *block = realloc(old, size);
    if (!block) die("realloc");
    return block;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t random64(void) {
    static uint64_t state = 0x9E3779B97F4A7C15u;
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* --- answers --------------------------------------------------------------------------------------------------- */

static void usage_text(char *to, size_t size, int completion) {
    char details[64] = "null";
    if (cached >= 0) snprintf(details, sizeof details, "{\"cached_tokens\":%d}", cached);
    snprintf(to, size, "{\"prompt_tokens\":1000,\"total_tokens\":%d,\"completion_tokens\":%d,\"prompt_tokens_details\":%s,"
             "\"reasoning_tokens\":0}", 1000 + completion, completion, details);
}

static void make_answers(void) {
    char usage[256], body[1024], pad[256];
    usage_text(usage, sizeof usage, 32);
    memset(pad, 0, sizeof pad);
    for (int filled = 0;; filled++) { /* the text is as long as makes the body 505 bytes, where the usage lets it */
        int n = snprintf(body, sizeof body,
            "{\"id\":\"5f0c6d9e8b7a4c3d9e1f2a3b4c5d6e7f\",\"object\":\"chat.completion\",\"created\":1767225600,"
            "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\","
            "\"reasoning_content\":null,\"tool_calls\":null},\"logprobs\":null,\"finish_reason\":\"stop\","
            "\"matched_stop\":2}],\"usage\":%s,\"metadata\":{\"weight_version\":\"default\"}}", pad, usage);
        if (n >= 505 || filled == (int)sizeof pad - 1) {
            json_len = (size_t)snprintf(json_reply, sizeof json_reply,
                "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: %d\r\n"
                "content-type: application/json\r\n\r\n%s", n, body);
            break;
        }
        pad[filled] = "the quick brown fox "[filled % 20];
    }
    int n = snprintf(body, sizeof body,
        "data: {\"id\":\"5f0c6d9e8b7a4c3d9e1f2a3b4c5d6e7f\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"role\":null,\"content\":\"t=0123456789abcdef fox\","
        "\"reasoning_content\":null,\"tool_calls\":null},\"logprobs\":null,\"finish_reason\":null,"
        "\"matched_stop\":null}],\"usage\":null}\n\n");
    event_len = (size_t)snprintf(event_text, sizeof event_text, "%x\r\n%s\r\n", n, body);
    stamp_at = (size_t)(strstr(event_text, "t=") + 2 - event_text);
    last_len = 0;
    if (cached >= 0) { /* as with stream_options.include_usage */
        usage_text(usage, sizeof usage, stream_events);
        n = snprintf(body, sizeof body,
            "data: {\"id\":\"5f0c6d9e8b7a4c3d9e1f2a3b4c5d6e7f\",\"object\":\"chat.completion.chunk\","
            "\"created\":1767225600,\"model\":\"bench\",\"choices\":[],\"usage\":%s}\n\n", usage);
        last_len = (size_t)snprintf(last_text, sizeof last_text, "%x\r\n%s\r\n", n, body);
    }
    last_len += (size_t)snprintf(last_text + last_len, sizeof last_text - last_len, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static void load_pages(struct worker *worker, const char *dir) {
    DIR *listing = opendir(dir);
    if (!listing) die(dir);
    for (struct dirent *entry; (entry = readdir(listing));) {
        if (entry->d_name[0] != '~') continue;
        char name[4096];
        snprintf(name, sizeof name, "%s/%s", dir, entry->d_name);
        FILE *file = fopen(name, "rb");
        if (!file) die(name);
        char *body = NULL;
        size_t len = 0;
        for (size_t got = 1; got; len += got) {
            body = grown(body, len + 65536);
            got = fread(body + len, 1, 65536, file);
        }
        fclose(file);
        worker->pages = grown(worker->pages, sizeof(struct page) * (size_t)(worker->npages + 1));
        struct page *page = &worker->pages[worker->npages++];
        page->path = strdup(entry->d_name);
        for (char *c = page->path; *c; c++) if (*c == '~') *c = '/';
        page->reply = grown(NULL, len + 256);
        int head = snprintf(page->reply, 256, "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: %zu\r\n"
                            "content-type: application/json\r\n\r\n", len);
        memcpy(page->reply + head, body, len);
        page->len = (size_t)head + len;
        free(body);
    }
    closedir(listing);
}

/* --- timers ---------------------------------------------------------------------------------------------------- */

static void heap_push(struct timer item) {
    if (heap_len == heap_room) heap = grown(heap, sizeof *heap * (size_t)(heap_room = heap_room ? heap_room * 2 : 1024));
    int at = heap_len++;
    while (at && heap[(at - 1) / 2].due > item.due) { heap[at] = heap[(at - 1) / 2]; at = (at - 1) / 2; }
    heap[at] = item;
}

static struct timer heap_pop(void) {
    struct timer top = heap[0], item = heap[--heap_len];
    int at = 0;
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_len) break;
        if (child + 1 < heap_len && heap[child + 1].due < heap[child].due) child++;
        if (heap[child].due >= item.due) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
    return top;
}

static void arm_timer(void) {
    uint64_t due = heap_len ? heap[0].due : 0;
    if (due == armed) return;
    armed = due;
    struct itimerspec when = {{0, 0}, {(time_t)(due / 1000000000u), (long)(due % 1000000000u)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* --- connections ----------------------------------------------------------------------------------------------- */

static void drop(int fd) {
    struct conn *conn = &conns[fd];
    if (conn->streaming) active_streams--;
    open_conns--;
    free(conn->in);
    free(conn->out);
    uint32_t generation = conn->generation + 1;
    memset(conn, 0, sizeof *conn);
    conn->worker = -1;
    conn->generation = generation;
    close(fd);
}

static void watch(int fd, int write) {
    struct conn *conn = &conns[fd];
    if (conn->wants_write == write) return;
    conn->wants_write = write;
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | (write ? EPOLLOUT : 0u), .data.fd = fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

/* False once the connection is gone. */
static int put(int fd, const char *data, size_t len) {
    struct conn *conn = &conns[fd];
    if (conn->out_len == conn->out_sent) {
        ssize_t sent = send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent == (ssize_t)len) return 1;
        if (sent < 0 && errno != EAGAIN && errno != EINTR) { drop(fd); return 0; }
        if (sent > 0) { data += sent; len -= (size_t)sent; }
        conn->out_len = conn->out_sent = 0;
    }
    if (conn->out_len + len > conn->out_room)
        conn->out = grown(conn->out, conn->out_room = (conn->out_len + len) * 2);
    memcpy(conn->out + conn->out_len, data, len);
    conn->out_len += len;
    watch(fd, 1);
    return 1;
}

static int flush_out(int fd) {
    struct conn *conn = &conns[fd];
    ssize_t sent = send(fd, conn->out + conn->out_sent, conn->out_len - conn->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        if (errno == EAGAIN || errno == EINTR) return 1;
        drop(fd);
        return 0;
    }
    conn->out_sent += (size_t)sent;
    if (conn->out_sent == conn->out_len) { conn->out_sent = conn->out_len = 0; watch(fd, 0); }
    return 1;
}

static int send_event(int fd, uint64_t stamp) {
    static const char hex[] = "0123456789abcdef";
    for (int digit = 15; digit >= 0; digit--, stamp >>= 4) event_text[stamp_at + (size_t)digit] = hex[stamp & 15];
    return put(fd, event_text, event_len);
}

static int streams_wanted(const char *body, size_t len) {
    /* Clients put the field at an end of the object; a router may have rewritten it with other spacing. */
    size_t edge = len < 512 ? len : 512;
    const char *parts[3] = {body + len - edge, body, body};
    size_t sizes[3] = {edge, edge, len};
    for (int part = 0; part < 3; part++) {
        const char *at = parts[part], *end = at + sizes[part];
        while ((at = memmem(at, (size_t)(end - at), "\"stream\"", 8))) {
            at += 8;
            while (at < end && (*at == ' ' || *at == ':')) at++;
            if (at < end && (*at == 't' || *at == 'f')) return *at == 't';
        }
    }
    return 0;
}

static int answer_get(int fd, const char *path, size_t len) {
    static const char missing[] =
        "HTTP/1.1 404 Not Found\r\ncontent-length: 22\r\ncontent-type: application/json\r\n\r\n{\"detail\":\"Not Found\"}";
    const char *query = memchr(path, '?', len);
    if (query) len = (size_t)(query - path);
    struct worker *worker = &workers[conns[fd].worker];
    for (int i = 0; i < worker->npages; i++)
        if (strlen(worker->pages[i].path) == len && !memcmp(worker->pages[i].path, path, len))
            return put(fd, worker->pages[i].reply, worker->pages[i].len);
    return put(fd, missing, sizeof missing - 1);
}

static int answer_post(int fd, const char *body, size_t len) {
    struct conn *conn = &conns[fd];
    workers[conn->worker].requests++;
    if (!streams_wanted(body, len)) return put(fd, json_reply, json_len);
    workers[conn->worker].streams++;
    conn->streaming = 1;
    conn->left = stream_events;
    active_streams++;
    if (!put(fd, sse_head, sizeof sse_head - 1)) return 0;
    conn->due = now_ns();
    if (spread) {
        conn->due += random64() % (gap_ns + 1);
    } else {
        if (!send_event(fd, conn->due)) return 0;
        conn->left--;
        conn->due += gap_ns;
    }
    heap_push((struct timer){conn->due, fd, conn->generation});
    return 1;
}

/* Answers what is whole in the buffer. False once the connection is gone. */
static int serve(int fd) {
    struct conn *conn = &conns[fd];
    size_t used = 0;
    while (!conn->streaming && used < conn->have) {
        char *head = conn->in + used;
        char *end = memmem(head, conn->have - used, "\r\n\r\n", 4);
        if (!end) break;
        size_t head_len = (size_t)(end - head) + 4, body_len = 0;
        for (char *line = memchr(head, '\n', head_len); line && line + 1 < end; line = memchr(line + 1, '\n', (size_t)(end - line))) {
            if (!strncasecmp(line + 1, "content-length:", 15)) body_len = strtoul(line + 16, NULL, 10);
            if (!strncasecmp(line + 1, "transfer-encoding:", 18)) {
                static const char refused[] = "HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                if (put(fd, refused, sizeof refused - 1)) drop(fd);
                return 0;
            }
        }
        if (body_len > MAX_BODY) { drop(fd); return 0; }
        if (conn->have - used < head_len + body_len) {
            if (conn->room < head_len + body_len + used) conn->in = grown(conn->in, conn->room = head_len + body_len + used);
            break;
        }
        used += head_len + body_len;
        char *path = memchr(head, ' ', head_len), *path_end = path ? memchr(path + 1, ' ', head_len) : NULL;
        if (!path_end) { drop(fd); return 0; }
        int alive = head[0] == 'P' ? answer_post(fd, head + head_len, body_len)
                                   : answer_get(fd, path + 1, (size_t)(path_end - path - 1));
        if (!alive) return 0;
    }
    if (used) memmove(conn->in, conn->in + used, conn->have - used);
    conn->have -= used;
    return 1;
}

static void readable(int fd) {
    struct conn *conn = &conns[fd];
    for (;;) {
        if (conn->have == conn->room) conn->in = grown(conn->in, conn->room = conn->room ? conn->room * 2 : 2048);
        size_t room = conn->room - conn->have;
        ssize_t got = recv(fd, conn->in + conn->have, room, MSG_DONTWAIT);
        if (got <= 0) {
            if (got == 0 || (errno != EAGAIN && errno != EINTR)) drop(fd);
            return;
        }
        conn->have += (size_t)got;
        if (!serve(fd)) return;
        if ((size_t)got < room) return;
    }
}

static void fire(void) {
    uint64_t now = now_ns();
    while (heap_len && heap[0].due <= now) {
        struct timer item = heap_pop();
        struct conn *conn = &conns[item.fd];
        if (conn->worker < 0 || conn->generation != item.generation || !conn->streaming) continue;
        if (conn->left > 0) {
            if (!send_event(item.fd, now_ns())) continue;
            conn->left--;
            conn->due += gap_ns;
            heap_push((struct timer){conn->due, item.fd, item.generation});
        } else if (put(item.fd, last_text, last_len)) {
            conn->streaming = 0;
            active_streams--;
            serve(item.fd); /* what was pipelined meanwhile */
        }
    }
}

static void accept_all(int worker) {
    for (;;) {
        int fd = accept4(workers[worker].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= max_fds) { close(fd); continue; }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        conns[fd].worker = worker;
        open_conns++;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* --- control --------------------------------------------------------------------------------------------------- */

static void obey(char *line) {
    char name[16] = "";
    long long value = 0;
    sscanf(line, "%15s %lld", name, &value);
    if (!strcmp(name, "events")) stream_events = (int)value;
    else if (!strcmp(name, "gap")) gap_ns = (uint64_t)value * 1000;
    else if (!strcmp(name, "spread")) spread = (int)value;
    else if (!strcmp(name, "cached")) cached = (int)value;
    else if (!strcmp(name, "stats")) {
        printf("{\"active_streams\":%d,\"connections\":%d,\"requests\":[", active_streams, open_conns);
        for (int i = 0; i < nworkers; i++) printf("%s%llu", i ? "," : "", (unsigned long long)workers[i].requests);
        printf("]}\n");
        return;
    } else { printf("unknown: %s\n", name); return; }
    make_answers();
    printf("ok\n");
}

static void control(void) {
    static char text[4096];
    static size_t have;
    ssize_t got = read(0, text + have, sizeof text - 1 - have);
    if (got <= 0) exit(0);
    have += (size_t)got;
    text[have] = 0;
    char *line = text;
    for (char *end; (end = strchr(line, '\n')); line = end + 1) { *end = 0; obey(line); }
    have = strlen(line);
    memmove(text, line, have);
    fflush(stdout);
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    max_fds = files.rlim_max > 200000 ? 200000 : (int)files.rlim_max;
    conns = calloc((size_t)max_fds, sizeof *conns);
    for (int i = 0; i < max_fds; i++) conns[i].worker = -1;
    make_answers();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = timer_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    event.data.fd = 0;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event);
    int *listener_of = calloc((size_t)max_fds, sizeof(int));
    for (int i = 1; i < argc && nworkers < MAX_WORKERS; i++) {
        char *colon = strrchr(argv[i], ':');
        if (!colon) { fprintf(stderr, "usage: worker DIR:PORT ...\n"); return 2; }
        *colon = 0;
        struct worker *worker = &workers[nworkers];
        load_pages(worker, argv[i]);
        worker->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        int one = 1;
        setsockopt(worker->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1)),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        if (bind(worker->fd, (struct sockaddr *)&address, sizeof address)) die("bind");
        if (listen(worker->fd, 4096)) die("listen");
        listener_of[worker->fd] = ++nworkers;
        event.data.fd = worker->fd;
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, worker->fd, &event);
    }
    printf("ready\n");
    fflush(stdout);
    static struct epoll_event events[1024];
    for (;;) {
        arm_timer();
        int count = epoll_wait(epoll_fd, events, 1024, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == timer_fd) { uint64_t times; if (read(timer_fd, &times, 8) == 8) armed = 0; }
            else if (fd == 0) control();
            else if (listener_of[fd]) accept_all(listener_of[fd] - 1);
            else {
                if (conns[fd].worker < 0) continue;
                if (events[i].events & EPOLLOUT && !flush_out(fd)) continue;
                if (events[i].events & ~EPOLLOUT) readable(fd);
            }
        }
        fire();
    }
}
