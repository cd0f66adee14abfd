/*
 * The directory that a bundle is unpacked below: the first of several that can be used.
 *
 * What lies in it is executed as root. So it has to be ours alone: a directory, no link, of this
 * user, that nobody else can write to. On /tmp somebody else may have been there first.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define LOCK ".lock"
#define LOCK_SECONDS 60 /* unpacking takes one, on a disk that is busy some more */

char failure[1024];

void failed(const char *directory, const char *what)
{
    size_t length = strlen(failure);

    snprintf(failure + length, sizeof failure - length, "%s%s: %s", length ? "; " : "", directory,
             what);
}

/* Make the directory and its parents; false, with errno, if it is not there in the end. */
static bool make_directories(const char *path)
{
    char parent[PATH_MAX];
    char *slash;

    if (mkdir(path, 0700) == 0 || errno == EEXIST)
        return true;
    if (errno != ENOENT || strlen(path) >= sizeof parent)
        return false;
    strcpy(parent, path);
    for (slash = strchr(parent + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(parent, 0755) < 0 && errno != EEXIST)
            return false;
        *slash = '/';
    }
    return mkdir(path, 0700) == 0 || errno == EEXIST;
}

/* Why a directory must not be used, or NULL. */
static const char *objection(int root)
{
    struct stat status;
    struct statvfs filesystem;

    if (fstat(root, &status) < 0 || fstatvfs(root, &filesystem) < 0)
        return strerror(errno);
    if (status.st_uid != geteuid())
        return "it belongs to another user";
    if (status.st_mode & (S_IWGRP | S_IWOTH))
        return "others can write to it";
    if (filesystem.f_flag & ST_NOEXEC)
        return "nothing there can be executed (noexec)";
    return NULL;
}

static int open_root(const char *path)
{
    const char *why;
    int root;

    if (*path != '/') {
        failed(path, "not an absolute path");
        return -1;
    }
    root = make_directories(path) ? open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                                  : -1;
    if (root < 0) {
        failed(path, strerror(errno));
        return -1;
    }
    why = objection(root);
    if (why) {
        failed(path, why);
        close(root);
        return -1;
    }
    return root;
}

static bool hold(int root, const struct bundle *bundle, struct home *home)
{
    home->locks[0] = tree_hold(root, &bundle->runtime);
    if (home->locks[0] < 0)
        return false;
    home->locks[1] = tree_hold(root, &bundle->package);
    if (home->locks[1] >= 0)
        return true;
    close(home->locks[0]);
    home->locks[0] = -1;
    return false;
}

static bool hold_or_unpack(int root, const struct bundle *bundle, const struct payload *payload,
                           int *lock)
{
    *lock = tree_hold(root, payload);
    if (*lock < 0 && tree_unpack(root, bundle, payload)) {
        *lock = tree_hold(root, payload);
        if (*lock < 0)
            errno = EIO;
    }
    return *lock >= 0;
}

/* Unpack what is missing or damaged, while nobody else does. */
static bool unpack(int root, const struct bundle *bundle, struct home *home)
{
    int lock = openat(root, LOCK, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    bool good;

    if (lock < 0)
        return false;
    good = lock_within(lock, LOCK_SECONDS);
    if (good) {
        tree_remove_leftovers(root);
        good = hold_or_unpack(root, bundle, &bundle->runtime, &home->locks[0]) &&
               hold_or_unpack(root, bundle, &bundle->package, &home->locks[1]);
        if (good)
            tree_remove_unused(root, bundle);
    }
    int reason = errno;
    close(lock);
    errno = reason;
    return good;
}

static bool name_files(const char *path, const struct bundle *bundle, struct home *home)
{
    char tree[PATH_MAX];

    return join(tree, sizeof tree, path, bundle->runtime.name) &&
           join(home->runtime, sizeof home->runtime, tree, "files") &&
           join(tree, sizeof tree, path, bundle->package.name) &&
           join(home->package, sizeof home->package, tree, "files");
}

static bool try_root(const char *path, const struct bundle *bundle, struct home *home)
{
    int root = open_root(path);
    bool good;

    if (root < 0)
        return false;
    good = name_files(path, bundle, home) &&
           (hold(root, bundle, home) || unpack(root, bundle, home));
    if (!good)
        failed(path, strerror(errno));
    close(root);
    return good;
}

/* Have the bundle unpacked, and hold it. */
bool root_prepare(const struct bundle *bundle, struct home *home)
{
    const char *chosen = getenv("CONTAINERD_WASM_SHIMS_ROOT");
    char temporary[64];

    *failure = '\0';
    snprintf(temporary, sizeof temporary, "/tmp/containerd-wasm-shims-%u", geteuid());
    return try_root(chosen && *chosen ? chosen : "/var/lib/containerd-wasm-shims", bundle, home) ||
           try_root("/run/containerd-wasm-shims", bundle, home) ||
           try_root(temporary, bundle, home);
}
