/* Small things about files. */
#define _GNU_SOURCE
#include "launcher.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

/* Put "first/second" into `path`; false if it is too long. */
bool join(char *path, size_t size, const char *first, const char *second)
{
    int length = snprintf(path, size, "%s/%s", first, second);

    return length >= 0 && (size_t)length < size;
}

bool write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, data, size);

        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        data += written;
        size -= (size_t)written;
    }
    return true;
}

/* Return `size` bytes of the file and a NUL, to be freed; NULL if there are fewer. */
char *read_all(int fd, off_t offset, size_t size)
{
    char *data = malloc(size + 1);
    size_t done = 0;

    while (data && done < size) {
        ssize_t got = pread(fd, data + done, size - done, offset + (off_t)done);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            free(data);
            return NULL;
        }
        done += (size_t)got;
    }
    if (data)
        data[size] = '\0';
    return data;
}

/* Lock for this process alone. Whoever holds the lock may hang: nobody waits for it for ever. */
bool lock_within(int fd, int seconds)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    struct timespec now;
    time_t end;

    clock_gettime(CLOCK_MONOTONIC, &now);
    end = now.tv_sec + seconds;
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((errno != EWOULDBLOCK && errno != EINTR) || now.tv_sec >= end)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

/* Remove a file or a directory and all below it, as far as that can be done. */
void remove_tree(int directory, const char *name)
{
    int fd;
    DIR *entries;
    struct dirent *entry;

    if (unlinkat(directory, name, 0) == 0 || (errno != EISDIR && errno != EPERM))
        return;
    fd = openat(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    entries = fdopendir(fd);
    if (!entries) {
        close(fd);
        return;
    }
    while ((entry = readdir(entries)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            remove_tree(fd, entry->d_name);
    closedir(entries);
    unlinkat(directory, name, AT_REMOVEDIR);
}
