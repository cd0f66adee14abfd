/*
 * Unpacked trees below a root directory: NAME/{lock,manifest,files}.
 *
 * A name has the digest of what is in the tree, so a tree never changes. Whoever executes from it
 * holds NAME/lock shared for its life: the descriptor is inherited by the zygote and by the shims
 * it forks. Whoever makes or removes trees holds the root's own lock. A tree is made under another
 * name and renamed when it is whole.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#define LOCK "lock"
#define FILES "files"
#define NEW ".new-"
#define OLD ".old-"
#define FIRST_LOCK 10 /* beyond the descriptors that are passed on under fixed numbers */

static int open_directory(int parent, const char *name)
{
    return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int open_lock(int tree)
{
    int fd = openat(tree, LOCK, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC), high;

    if (fd < 0)
        return -1;
    high = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_LOCK);
    close(fd);
    return high;
}

/* Whether the tree still lies below its name: it may have been removed before we had its lock. */
static bool is_current(int root, const char *name, int tree)
{
    struct stat here, there;

    return fstat(tree, &here) == 0 && fstatat(root, name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
           here.st_ino == there.st_ino && here.st_dev == there.st_dev;
}

/* Return a descriptor that holds the tree, if it is there and whole; -1 otherwise. */
int tree_hold(int root, const struct payload *payload)
{
    int tree = open_directory(root, payload->name), lock;

    if (tree < 0)
        return -1;
    lock = open_lock(tree);
    if (lock >= 0 && (flock(lock, LOCK_SH | LOCK_NB) < 0 ||
                      !is_current(root, payload->name, tree) ||
                      !manifest_holds(tree, payload->name))) {
        close(lock);
        lock = -1;
    }
    close(tree);
    return lock;
}

static char *anonymous(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return memory == MAP_FAILED ? NULL : memory;
}

/* Return the archive of a payload, to be unmapped, or NULL with errno. */
static char *decompress(int fd, const struct payload *payload)
{
    char *packed = read_all(fd, payload->offset, payload->packed);
    char *archive = packed ? anonymous(payload->unpacked) : NULL;
    size_t size;

    if (archive) {
        size = ZSTD_decompress(archive, payload->unpacked, packed, payload->packed);
        if (ZSTD_isError(size) || size != payload->unpacked) {
            munmap(archive, payload->unpacked);
            archive = NULL;
            errno = EBADMSG;
        }
    }
    free(packed);
    return archive;
}

/*
 * Give a tree its lock. One that replaces a damaged tree takes over that one's, so that those who
 * run from there hold the new one as well.
 */
static bool make_lock(int root, const char *name, int tree)
{
    int old = open_directory(root, name), fd;
    struct stat status;
    bool linked = false;

    if (old >= 0) {
        linked = fstatat(old, LOCK, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
                 S_ISREG(status.st_mode) && linkat(old, LOCK, tree, LOCK, 0) == 0;
        close(old);
    }
    if (linked)
        return true;
    fd = openat(tree, LOCK, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return fd >= 0 && close(fd) == 0;
}

static bool fill(int root, int tree, const struct bundle *bundle, const struct payload *payload)
{
    char *archive = decompress(bundle->fd, payload);
    int files = -1;
    bool good;

    if (!archive)
        return false;
    good = mkdirat(tree, FILES, 0755) == 0 && (files = open_directory(tree, FILES)) >= 0 &&
           archive_extract(files, archive, payload->unpacked) &&
           manifest_write(tree, payload->name, archive, payload->unpacked) &&
           make_lock(root, payload->name, tree);
    if (files >= 0)
        close(files);
    munmap(archive, payload->unpacked);
    return good;
}

/* Put a whole tree in place; what lies there, damaged or no tree at all, goes. */
static bool replace(int root, const char *new, const char *name)
{
    char old[NAME_MAX + 1];

    if (renameat(root, new, root, name) == 0)
        return fsync(root) == 0;
    snprintf(old, sizeof old, OLD "%.200s", name);
    remove_tree(root, old);
    if (renameat(root, name, root, old) < 0 || renameat(root, new, root, name) < 0)
        return false;
    remove_tree(root, old);
    return fsync(root) == 0;
}

/* Unpack a payload; errno says why not. */
bool tree_unpack(int root, const struct bundle *bundle, const struct payload *payload)
{
    char new[NAME_MAX + 1];
    int tree = -1, reason;
    bool good;

    snprintf(new, sizeof new, NEW "%.200s", payload->name);
    remove_tree(root, new);
    good = mkdirat(root, new, 0700) == 0 && (tree = open_directory(root, new)) >= 0 &&
           fill(root, tree, bundle, payload) && replace(root, new, payload->name);
    reason = errno;
    if (tree >= 0)
        close(tree);
    if (!good)
        remove_tree(root, new);
    errno = reason;
    return good;
}

static bool begins(const char *text, const char *start)
{
    return !strncmp(text, start, strlen(start));
}

/* Call `body` with each name in the root. */
static void each(int root, const struct bundle *bundle,
                 void (*body)(int, const struct bundle *, const char *))
{
    int fd = open_directory(root, ".");
    DIR *entries = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;

    if (!entries) {
        if (fd >= 0)
            close(fd);
        return;
    }
    while ((entry = readdir(entries)))
        body(root, bundle, entry->d_name);
    closedir(entries);
}

static void remove_leftover(int root, const struct bundle *bundle, const char *name)
{
    (void)bundle;
    if (begins(name, NEW) || begins(name, OLD))
        remove_tree(root, name);
}

/* Remove what those left behind that were killed: whoever unpacks has the lock that we hold. */
void tree_remove_leftovers(int root)
{
    each(root, NULL, remove_leftover);
}

/* Remove a tree unless somebody holds it. */
static void remove_unheld(int root, const char *name)
{
    char old[NAME_MAX + 1];
    int tree = open_directory(root, name), lock;

    if (tree < 0)
        return;
    lock = open_lock(tree);
    snprintf(old, sizeof old, OLD "%.200s", name);
    if (lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0 &&
        renameat(root, name, root, old) == 0)
        remove_tree(root, old);
    if (lock >= 0)
        close(lock);
    close(tree);
}

static void remove_older_package(int root, const struct bundle *bundle, const char *name)
{
    size_t length = strlen(bundle->shim);

    if (begins(name, bundle->shim) && name[length] == '-' && strcmp(name, bundle->package.name))
        remove_unheld(root, name);
}

static const char *looked_for;
static bool found;

static void find_user(int root, const struct bundle *bundle, const char *name)
{
    char link[PATH_MAX], runtime[NAME_MAX];
    ssize_t length;

    (void)bundle;
    snprintf(link, sizeof link, "%.255s/" FILES "/runtime", name);
    length = readlinkat(root, link, runtime, sizeof runtime - 1);
    if (length > 0) {
        runtime[length] = '\0';
        found = found || !strcmp(runtime, looked_for);
    }
}

static void remove_runtime_without_package(int root, const struct bundle *bundle, const char *name)
{
    if (!begins(name, "runtime-") || !strcmp(name, bundle->runtime.name))
        return;
    looked_for = name;
    found = false;
    each(root, bundle, find_user);
    if (!found)
        remove_unheld(root, name);
}

/* Remove other versions of this shim that nobody runs, and runtimes that are nobody's then. */
void tree_remove_unused(int root, const struct bundle *bundle)
{
    each(root, bundle, remove_older_package);
    each(root, bundle, remove_runtime_without_package);
}
