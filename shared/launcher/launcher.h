/*
 * What containerd executes: one file with everything a shim needs, this program at its head.
 *
 * Most of its runs are a `start` or `delete` that the zygote does (zygote.c) and take a millisecond.
 * Otherwise it has the interpreter and the shim unpacked (root.c, tree.c) and executes them
 * (python.c). What is appended to it, bundle.c knows.
 */
#ifndef LAUNCHER_H
#define LAUNCHER_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct payload {
    char name[NAME_MAX]; /* of its directory below the root: "runtime-" or the shim, and a digest */
    off_t offset;        /* in the file */
    size_t packed;       /* bytes there: one zstd frame of a cpio archive */
    size_t unpacked;     /* bytes of the archive */
};

struct bundle {
    int fd;              /* of the whole file */
    char shim[32];       /* "spin" */
    char build_id[65];   /* hexadecimal; names the zygote's socket */
    char python[32];     /* "python3.14" */
    char loader[64];     /* "ld-linux-x86-64.so.2" */
    char execute[PATH_MAX]; /* a program to execute in place of what is unpacked, or "" */
    struct payload runtime; /* interpreter, its library, shared libraries, wheels */
    struct payload package; /* the kit and the shim */
    const char *version_text;
};

/* An unpacked bundle, held: nobody removes it while a process has the descriptors open. */
struct home {
    char runtime[PATH_MAX];
    char package[PATH_MAX];
    int locks[2];
};

/* bundle.c */
bool bundle_open(struct bundle *bundle);

/* zygote.c: the exit code, or -1 if nobody did the work. */
int zygote_forward(const struct bundle *bundle, char **arguments, const char *command);

/* python.c */
bool python_prepare(const struct bundle *bundle, struct home *home);
void python_execute(const struct bundle *bundle, const struct home *home, char **arguments,
                    char **environment);

/* root.c: the reasons are in `failure`. */
bool root_prepare(const struct bundle *bundle, struct home *home);
extern char failure[1024];
void failed(const char *directory, const char *what);

/* tree.c: all below the directory `root`, whose lock the caller of the last three holds. */
int tree_hold(int root, const struct payload *payload);
bool tree_unpack(int root, const struct bundle *bundle, const struct payload *payload);
void tree_remove_leftovers(int root);
void tree_remove_unused(int root, const struct bundle *bundle);

/* manifest.c */
bool manifest_write(int tree, const char *id, const char *archive, size_t size);
bool manifest_holds(int tree, const char *id);

/* archive.c */
struct entry {
    const char *path;
    const char *data;
    size_t size;
    mode_t mode;
};
bool archive_next(const char *archive, size_t size, size_t *offset, struct entry *entry);
bool archive_extract(int directory, const char *archive, size_t size);

/* files.c */
bool join(char *path, size_t size, const char *first, const char *second);
bool write_all(int fd, const char *data, size_t size);
char *read_all(int fd, off_t offset, size_t size);
bool lock_within(int fd, int seconds);
void remove_tree(int directory, const char *name);

#endif
