/*
 * Handing a command to the zygote, the process that pods are forked from.
 *
 * It greets with one byte and gets the message: counts, arguments, environment and working
 * directory, separated by NUL, with descriptors 0, 1 and 2 beside them. Its fork says with one byte
 * that it does the work, and with another, the exit code, that it is done. Whatever goes wrong before
 * the work is taken, the caller does it itself: a zygote never stops a pod. Afterwards nobody else
 * may: both would print an address. A fork that finds the caller gone ends.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_SECONDS 5          /* a warm zygote takes milliseconds */
#define DELETE_GREETING_SECONDS 1 /* containerd gives the whole `delete` 5 s */
#define FIRST_GREETING_SECONDS 20 /* the zygote was just started and is importing */
#define START_SECONDS 60          /* of a fork, on a node that is busy beyond reason */
#define LOCK_SECONDS 20
#define LISTENER 3 /* the socket in the zygote */
#define BACKLOG 1024
#define NOBODY (-1)
#define EXIT_FAILED 1

extern char **environ;

static bool make_address(const struct bundle *bundle, struct sockaddr_un *address)
{
    const char *directory = getenv("CONTAINERD_WASM_SHIMS_RUN");
    int length;

    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    length = snprintf(address->sun_path, sizeof address->sun_path, "%s/%s-%s.sock",
                      directory && *directory ? directory : "/run/containerd-wasm-shims",
                      bundle->shim, bundle->build_id);
    return length > 0 && (size_t)length < sizeof address->sun_path;
}

static bool set_timeout(int fd, int option, int seconds)
{
    struct timeval time = {.tv_sec = seconds};

    return setsockopt(fd, SOL_SOCKET, option, &time, sizeof time) == 0;
}

/* Whoever listens gets our descriptors: it has to be root or this user. */
static bool is_trusted(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

/* Return a connection, or -1. The time counts where a zygote hangs and its queue is full. */
static int connect_within(const struct sockaddr_un *address, int seconds)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    if (set_timeout(fd, SO_SNDTIMEO, seconds) &&
        connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 && is_trusted(fd))
        return fd;
    close(fd);
    return -1;
}

static void append(char **end, const char *text)
{
    end[0] = stpcpy(end[0], text) + 1;
}

/* Python knows no other variables. */
static bool is_variable(const char *entry)
{
    return *entry != '=' && strchr(entry, '=');
}

/* Return the message, to be freed, or NULL. */
static char *make_message(char **arguments, size_t *size)
{
    char directory[PATH_MAX], counts[2][24];
    size_t bytes = sizeof counts, n = 0, variables = 0;
    char *message, *end;

    if (!getcwd(directory, sizeof directory))
        return NULL;
    for (; arguments[n]; n++)
        bytes += strlen(arguments[n]) + 1;
    for (char **entry = environ; *entry; entry++)
        if (is_variable(*entry)) {
            variables++;
            bytes += strlen(*entry) + 1;
        }
    end = message = malloc(bytes + strlen(directory) + 1);
    if (!message)
        return NULL;
    snprintf(counts[0], sizeof counts[0], "%zu", n);
    snprintf(counts[1], sizeof counts[1], "%zu", variables);
    append(&end, counts[0]);
    append(&end, counts[1]);
    for (size_t i = 0; i < n; i++)
        append(&end, arguments[i]);
    for (char **entry = environ; *entry; entry++)
        if (is_variable(*entry))
            append(&end, *entry);
    append(&end, directory);
    *size = (size_t)(end - message) - 1;
    return message;
}

static bool send_message(int fd, char *message, size_t size)
{
    const int standard[3] = {0, 1, 2};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof standard)];
    } control;
    struct iovec data = {.iov_base = message, .iov_len = size};
    struct msghdr packet = {.msg_iov = &data,
                            .msg_iovlen = 1,
                            .msg_control = control.space,
                            .msg_controllen = sizeof control.space};

    memset(&control, 0, sizeof control);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof standard);
    memcpy(CMSG_DATA(&control.header), standard, sizeof standard);
    return sendmsg(fd, &packet, MSG_NOSIGNAL) == (ssize_t)size;
}

/* Receive one byte within the time: 1, 0 at the end of the connection, -1 with errno. */
static ssize_t receive(int fd, int seconds, unsigned char *byte)
{
    ssize_t got;

    if (!set_timeout(fd, SO_RCVTIMEO, seconds))
        return -1;
    do
        got = recv(fd, byte, 1, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

/* Close what was inherited as number 3 only if it is ours to replace; then execute the zygote. */
static void become_zygote(const struct bundle *bundle, const struct home *home, int listener)
{
    char *arguments[] = {"zygote", NULL};
    char **environment = calloc(64, sizeof *environment);
    int null = open("/dev/null", O_RDWR);
    size_t n = 0;

    if (!environment || null < 0 || setsid() < 0)
        return;
    for (char **entry = environ; *entry && n < 63; entry++)
        if (!strncmp(*entry, "PATH=", 5) || !strncmp(*entry, "CONTAINERD_WASM_SHIMS_", 22))
            environment[n++] = *entry;
    listener = fcntl(listener, F_DUPFD_CLOEXEC, LISTENER + 1);
    for (int number = 0; number < 3; number++)
        if (dup2(null, number) < 0)
            return;
    if (listener < 0 || dup2(listener, LISTENER) < 0)
        return;
    if (null > LISTENER)
        close(null);
    python_execute(bundle, home, arguments, environment);
}

static bool spawn_zygote(const struct bundle *bundle, const struct home *home, int listener)
{
    pid_t pid = fork();

    if (pid == 0) {
        become_zygote(bundle, home, listener);
        _exit(127);
    }
    return pid > 0;
}

/* Listen for the zygote and execute it; return a connection to it, or -1. */
static int make_zygote(const struct bundle *bundle, const struct sockaddr_un *address)
{
    struct home home;
    int listener, connection = -1;

    if (!python_prepare(bundle, &home))
        return -1;
    unlink(address->sun_path);
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (listener >= 0 && bind(listener, (const struct sockaddr *)address, sizeof *address) == 0 &&
        chmod(address->sun_path, 0600) == 0 && listen(listener, BACKLOG) == 0 &&
        spawn_zygote(bundle, &home, listener)) {
        close(listener);
        listener = -1;
        connection = connect_within(address, ANSWER_SECONDS);
    }
    if (listener >= 0)
        close(listener);
    for (int i = 0; i < 2; i++)
        if (home.locks[i] >= 0)
            close(home.locks[i]);
    return connection;
}

static bool make_parent(const char *path)
{
    char directory[PATH_MAX];
    char *slash;

    snprintf(directory, sizeof directory, "%s", path);
    for (slash = strchr(directory + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        bool last = !strchr(slash + 1, '/');

        *slash = '\0';
        if (mkdir(directory, last ? 0700 : 0755) < 0 && errno != EEXIST)
            return false;
        *slash = '/';
    }
    return true;
}

/* Start a zygote unless somebody else just did; return a connection, or -1. */
static int start_zygote(const struct bundle *bundle, const struct sockaddr_un *address)
{
    char path[sizeof address->sun_path + 8];
    int lock, connection = -1;

    snprintf(path, sizeof path, "%s.lock", address->sun_path);
    if (!make_parent(path))
        return -1;
    lock = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock < 0)
        return -1;
    if (lock_within(lock, LOCK_SECONDS)) {
        connection = connect_within(address, ANSWER_SECONDS);
        if (connection < 0)
            connection = make_zygote(bundle, address);
    }
    close(lock);
    return connection;
}

/* Remove the socket of a zygote that hangs, unless another one's lies there by now. */
static void forget(const char *path, ino_t inode)
{
    struct stat status;

    if (lstat(path, &status) == 0 && status.st_ino == inode)
        unlink(path);
}

static ino_t inode_of(const char *path)
{
    struct stat status;

    return lstat(path, &status) == 0 ? status.st_ino : 0;
}

static int ask(int connection, int seconds, bool starting, char **arguments, const char *path)
{
    ino_t inode = inode_of(path);
    unsigned char byte = 0;
    size_t size;
    char *message;
    ssize_t got = receive(connection, seconds, &byte);

    /*
     * What waits in the queue of a zygote that hangs stays open, and containerd reads our output
     * until nobody holds it: only one that has just shown itself alive gets it.
     */
    if (got < 0 && errno == EAGAIN && starting)
        forget(path, inode); /* it hangs: the next start makes another one */
    if (got <= 0)
        return NOBODY;
    message = make_message(arguments, &size);
    if (!message)
        return NOBODY;
    got = send_message(connection, message, size) ? receive(connection, ANSWER_SECONDS, &byte) : -1;
    free(message);
    if (got != 1)
        return NOBODY;
    got = receive(connection, starting ? START_SECONDS : ANSWER_SECONDS, &byte);
    if (got == 1)
        return byte;
    fputs(got < 0 && errno == EAGAIN ? "not done in time by the fork of the zygote\n"
                                     : "the fork of the zygote ended without an answer\n",
          stderr);
    return EXIT_FAILED;
}

/* Have the zygote run `arguments`, the last of which is the command. */
int zygote_forward(const struct bundle *bundle, char **arguments, const char *command)
{
    bool starting = !strcmp(command, "start");
    int seconds = starting ? ANSWER_SECONDS : DELETE_GREETING_SECONDS;
    struct sockaddr_un address;
    int connection, code;

    if (!make_address(bundle, &address))
        return NOBODY;
    connection = connect_within(&address, seconds);
    if (connection < 0 && starting) { /* one only for a clean-up is not worth its start */
        connection = start_zygote(bundle, &address);
        seconds = FIRST_GREETING_SECONDS;
    }
    if (connection < 0)
        return NOBODY;
    code = ask(connection, seconds, starting, arguments, address.sun_path);
    close(connection);
    return code;
}
