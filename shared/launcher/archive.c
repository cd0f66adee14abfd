/*
 * The archive inside a payload: cpio's "new ASCII" format, as of the kernel's initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst). It is ours, so what cannot be in it
 * ends the work rather than being dealt with.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER 110
#define MAGIC "070701"
#define LAST "TRAILER!!!"

static bool field(const char *header, int number, size_t *value)
{
    const char *digit = header + 6 + 8 * number;

    *value = 0;
    for (int i = 0; i < 8; i++) {
        char c = digit[i];

        if (c >= '0' && c <= '9')
            *value = *value * 16 + (size_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            *value = *value * 16 + (size_t)(c - 'a' + 10);
        else
            return false;
    }
    return true;
}

static size_t padded(size_t offset)
{
    return (offset + 3) & ~(size_t)3;
}

/* Read the entry at `offset` and go on to the next one; false at the end, with a NULL path. */
bool archive_next(const char *archive, size_t size, size_t *offset, struct entry *entry)
{
    const char *header = archive + *offset;
    size_t mode, length, name, data;

    memset(entry, 0, sizeof *entry);
    entry->path = "";
    if (*offset + HEADER > size || memcmp(header, MAGIC, 6) || !field(header, 1, &mode) ||
        !field(header, 6, &length) || !field(header, 11, &name))
        return false;
    data = padded(*offset + HEADER + name);
    if (name == 0 || data + length > size || header[HEADER + name - 1])
        return false;
    entry->path = header + HEADER;
    entry->data = archive + data;
    entry->size = length;
    entry->mode = (mode_t)mode;
    *offset = padded(data + length);
    if (strcmp(entry->path, LAST))
        return true;
    entry->path = NULL;
    return false;
}

static bool extract_file(int directory, const struct entry *entry)
{
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int fd = openat(directory, entry->path, flags, 0600);
    bool done;

    if (fd < 0)
        return false;
    done = write_all(fd, entry->data, entry->size) && fchmod(fd, entry->mode & 0777) == 0;
    return close(fd) == 0 && done;
}

static bool extract(int directory, const struct entry *entry)
{
    char target[PATH_MAX];

    switch (entry->mode & S_IFMT) {
    case S_IFDIR:
        return mkdirat(directory, entry->path, entry->mode & 0777) == 0;
    case S_IFREG:
        return extract_file(directory, entry);
    case S_IFLNK:
        if (entry->size >= sizeof target)
            return false;
        memcpy(target, entry->data, entry->size);
        target[entry->size] = '\0';
        return symlinkat(target, directory, entry->path) == 0;
    default:
        return false;
    }
}

/* Write the archive's files into an empty directory; errno says why not. */
bool archive_extract(int directory, const char *archive, size_t size)
{
    struct entry entry;
    size_t offset = 0;

    while (archive_next(archive, size, &offset, &entry))
        if (!extract(directory, &entry))
            return false;
    return entry.path == NULL;
}
