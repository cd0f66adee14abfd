/*
 * What an unpacked tree looked like when it was whole: a line for each file, directory and link.
 *
 * A line has the inode's mode, size, time of modification and time of change. The kernel sets the
 * last one at every write, chmod, link or rename and nobody can set it back, so lines that agree
 * say that no byte is another and nothing was added, at the price of a stat each. The first line
 * names the payload and has a checksum of the others: a manifest that was cut is none.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES "files"
#define MANIFEST "manifest"
#define MAX_LINE (PATH_MAX + 128)
#define MAX_MANIFEST (16 << 20)

/* FNV-1a: against accidents; whoever can write here is root. */
static uint64_t checksum(const char *data, size_t size)
{
    uint64_t sum = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < size; i++)
        sum = (sum ^ (unsigned char)data[i]) * UINT64_C(0x100000001b3);
    return sum;
}

/* Put the line of a file as it is now, without its end; return the length, 0 if there is no file. */
static size_t describe(int files, const char *path, char *line)
{
    struct stat s;
    int length;

    if (fstatat(files, *path ? path : ".", &s, AT_SYMLINK_NOFOLLOW) < 0)
        return 0;
    length = snprintf(line, MAX_LINE, "%o %u %lld %lld.%09ld %lld.%09ld %s", s.st_mode, s.st_uid,
                      (long long)s.st_size, (long long)s.st_mtim.tv_sec, s.st_mtim.tv_nsec,
                      (long long)s.st_ctim.tv_sec, s.st_ctim.tv_nsec, path);
    return length > 0 && length < MAX_LINE ? (size_t)length : 0;
}

static bool add(FILE *out, int files, const char *path)
{
    char line[MAX_LINE];

    return describe(files, path, line) > 0 && fprintf(out, "%s\n", line) > 0;
}

static bool write_lines(FILE *out, int tree, const char *archive, size_t size)
{
    int files = openat(tree, FILES, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct entry entry;
    size_t offset = 0;
    bool good;

    if (files < 0)
        return false;
    good = add(out, files, "");
    while (good && archive_next(archive, size, &offset, &entry))
        good = add(out, files, entry.path);
    close(files);
    return good && entry.path == NULL;
}

/* Describe what was just unpacked into `tree`/files, and have it on disk before this is. */
bool manifest_write(int tree, const char *id, const char *archive, size_t size)
{
    char *lines = NULL, head[512];
    size_t length = 0;
    FILE *out = open_memstream(&lines, &length);
    bool good;
    int fd, n;

    if (!out)
        return false;
    good = write_lines(out, tree, archive, size);
    good = fclose(out) == 0 && good && syncfs(tree) == 0;
    n = snprintf(head, sizeof head, "%s %016" PRIx64 "\n", id, checksum(lines, length));
    fd = good ? openat(tree, MANIFEST, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    good = fd >= 0 && write_all(fd, head, (size_t)n) && write_all(fd, lines, length) &&
           fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    free(lines);
    return good;
}

static char *read_manifest(int tree)
{
    int fd = openat(tree, MANIFEST, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    char *text = NULL;

    if (fd < 0)
        return NULL;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size < MAX_MANIFEST)
        text = read_all(fd, 0, (size_t)status.st_size);
    close(fd);
    return text;
}

static bool lines_hold(int files, char *lines)
{
    char now[MAX_LINE];
    char *line, *end, *path;

    for (line = lines; (end = strchr(line, '\n')); line = end + 1) {
        *end = '\0';
        path = line;
        for (int field = 0; field < 5 && path; field++)
            path = strchr(path, ' ') ? strchr(path, ' ') + 1 : NULL;
        if (!path || !describe(files, path, now) || strcmp(now, line))
            return false;
    }
    return line != lines && *line == '\0';
}

/* Whether all is as it was unpacked. */
bool manifest_holds(int tree, const char *id)
{
    char *text = read_manifest(tree), *lines, head[512];
    int files;
    bool good = false;

    if (!text)
        return false;
    lines = strchr(text, '\n');
    if (lines) {
        snprintf(head, sizeof head, "%s %016" PRIx64 "\n", id,
                 checksum(lines + 1, strlen(lines + 1)));
        files = openat(tree, FILES, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        good = files >= 0 && !strncmp(text, head, strlen(head)) && lines_hold(files, lines + 1);
        if (files >= 0)
            close(files);
    }
    free(text);
    return good;
}
