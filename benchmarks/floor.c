/* The floor of a fan-out: a loop of send(2) over all connections, and nothing else.
 *
 * It knows no WebSocket. benchmarks/c_floor.py compiles it, and hands it frames that are ready.
 *
 * Standard output: first its port, as a line. Standard input: commands, each with a line as answer.
 *     clients N            wait until N clients are connected
 *     send COUNT LENGTH    LENGTH bytes of a frame follow: send it COUNT times to every client
 * It ends with its input. Clients that close are not looked for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENTS_MAX = 65536, FRAME_BYTES_MAX = 65536, EVENTS = 256, BACKLOG = 1024 };

static int clients[CLIENTS_MAX];
static size_t connected;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Waits for room, so that every client gets every byte. */
static void send_rest(int client, const char *bytes, size_t length) {
    while (length > 0) {
        struct pollfd writable = {.fd = client, .events = POLLOUT};
        poll(&writable, 1, -1);
        ssize_t taken = send(client, bytes, length, MSG_NOSIGNAL);
        if (taken < 0) {
            if (errno == EAGAIN || errno == EINTR) continue;
            return; /* gone */
        }
        bytes += taken;
        length -= (size_t)taken;
    }
}

static void broadcast(const char *frame, size_t length) {
    for (size_t each = 0; each < connected; each++) {
        ssize_t taken = send(clients[each], frame, length, MSG_NOSIGNAL);
        if (taken == (ssize_t)length) continue;
        if (taken < 0 && errno != EAGAIN) continue; /* gone */
        size_t done = taken < 0 ? 0 : (size_t)taken;
        send_rest(clients[each], frame + done, length - done);
    }
}

static int listening(void) {
    int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (door < 0 || bind(door, (struct sockaddr *)&address, size) || listen(door, BACKLOG) ||
        getsockname(door, (struct sockaddr *)&address, &size))
        fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return door;
}

static void accept_all(int door) {
    int client, on = 1;
    while ((client = accept4(door, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (connected == CLIENTS_MAX) fail("too many clients");
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        clients[connected++] = client;
    }
}

/* One command. False: the input has ended. `waiting` becomes the number of clients to wait for. */
static int obey(size_t *waiting) {
    static char frame[FRAME_BYTES_MAX];
    char line[64];
    size_t count, length;
    if (fgets(line, sizeof line, stdin) == NULL) return 0;
    if (sscanf(line, "clients %zu", &count) == 1) {
        *waiting = count;
    } else if (sscanf(line, "send %zu %zu", &count, &length) == 2 && length <= sizeof frame) {
        if (fread(frame, 1, length, stdin) != length) return 0;
        while (count-- > 0) broadcast(frame, length);
        puts("sent");
        fflush(stdout);
    } else {
        fail("no such command");
    }
    return 1;
}

int main(void) {
    /* Nothing may be left in a buffer of stdio when epoll says that there is no input. */
    setvbuf(stdin, NULL, _IONBF, 0);
    int door = listening(), events = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = door};
    if (events < 0 || epoll_ctl(events, EPOLL_CTL_ADD, door, &event)) fail("epoll");
    event.data.fd = STDIN_FILENO;
    if (epoll_ctl(events, EPOLL_CTL_ADD, STDIN_FILENO, &event)) fail("epoll");
    size_t waiting = 0;
    for (;;) {
        struct epoll_event ready[EVENTS];
        int found = epoll_wait(events, ready, EVENTS, -1);
        for (int each = 0; each < found; each++) {
            if (ready[each].data.fd == door) accept_all(door);
            else if (!obey(&waiting)) return 0;
        }
        if (waiting > 0 && connected >= waiting) {
            waiting = 0;
            puts("here");
            fflush(stdout);
        }
    }
}
