/*
 * What is appended to this program.
 *
 *     program | payload | payload | header | trailer
 *
 * The trailer, 32 bytes, is a magic of 8, and the header's offset and length in 12 digits each:
 * a file that was cut while it was copied has none. The header is
 * lines of a key and its value, an empty line, and what -v prints.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "wasmshim"
#define TRAILER 32
#define MAX_HEADER 65536

static bool copy(char *to, size_t size, const char *value)
{
    size_t length = strlen(value);

    if (length >= size)
        return false;
    memcpy(to, value, length + 1);
    return true;
}

static bool parse_payload(struct payload *payload, const char *value)
{
    long long offset, packed, unpacked;

    if (sscanf(value, "%200s %lld %lld %lld", payload->name, &offset, &packed, &unpacked) != 4)
        return false;
    payload->offset = offset;
    payload->packed = (size_t)packed;
    payload->unpacked = (size_t)unpacked;
    return !strchr(payload->name, '/');
}

static bool parse_line(struct bundle *bundle, const char *key, const char *value)
{
    if (!strcmp(key, "shim"))
        return copy(bundle->shim, sizeof bundle->shim, value);
    if (!strcmp(key, "build"))
        return copy(bundle->build_id, sizeof bundle->build_id, value);
    if (!strcmp(key, "python"))
        return copy(bundle->python, sizeof bundle->python, value);
    if (!strcmp(key, "loader"))
        return copy(bundle->loader, sizeof bundle->loader, value);
    if (!strcmp(key, "execute"))
        return copy(bundle->execute, sizeof bundle->execute, value);
    if (!strcmp(key, "runtime"))
        return parse_payload(&bundle->runtime, value);
    if (!strcmp(key, "package"))
        return parse_payload(&bundle->package, value);
    return false;
}

static bool parse_header(struct bundle *bundle, char *header)
{
    char *line, *end, *value;

    for (line = header; (end = strchr(line, '\n')) && end != line; line = end + 1) {
        *end = '\0';
        value = strchr(line, ' ');
        if (!value)
            return false;
        *value++ = '\0';
        if (!parse_line(bundle, line, value))
            return false;
    }
    if (!end)
        return false;
    bundle->version_text = end + 1;
    return *bundle->shim && *bundle->build_id &&
           (*bundle->execute || (*bundle->runtime.name && *bundle->package.name));
}

/* Open the file this process was executed from and read what it says of itself. */
bool bundle_open(struct bundle *bundle)
{
    struct stat status;
    char *trailer, *header;
    long long offset, length;

    memset(bundle, 0, sizeof *bundle);
    bundle->fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (bundle->fd < 0)
        bundle->fd = open((const char *)getauxval(AT_EXECFN), O_RDONLY | O_CLOEXEC);
    if (bundle->fd < 0 || fstat(bundle->fd, &status) < 0 || status.st_size < TRAILER)
        return false;
    trailer = read_all(bundle->fd, status.st_size - TRAILER, TRAILER);
    if (!trailer || sscanf(trailer, MAGIC "%12lld%12lld", &offset, &length) != 2)
        return false;
    if (offset < 0 || length <= 0 || length > MAX_HEADER ||
        offset + length + TRAILER != status.st_size)
        return false;
    header = read_all(bundle->fd, offset, (size_t)length);
    free(trailer);
    return header && parse_header(bundle, header);
}
