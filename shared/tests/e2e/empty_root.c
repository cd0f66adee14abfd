/*
 * What containerd executes in place of a shim: enter a root directory with nothing of the node's, and
 * become the shim of the same name there; containerd executes shims by their paths.
 *
 * EMPTY_ROOT is that directory, EMPTY_ROOT_BINDS names the places, separated by ":", that are the same
 * inside as outside; the directory of containerd's sockets is one more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void check(int result, const char *what)
{
    if (result >= 0)
        return;
    fprintf(stderr, "empty_root: %s: %s\n", what, strerror(errno));
    exit(71);
}

static void bind(const char *root, const char *place)
{
    char target[4096];

    snprintf(target, sizeof target, "%s%s", root, place);
    for (char *end = strchr(target + strlen(root) + 1, '/');; end = strchr(end + 1, '/')) {
        if (end)
            *end = '\0';
        if (mkdir(target, 0755) < 0 && errno != EEXIST)
            check(-1, target);
        if (!end)
            break;
        *end = '/';
    }
    check(mount(place, target, NULL, MS_BIND | MS_REC, NULL), target);
}

int main(int argc, char **argv)
{
    const char *root = getenv("EMPTY_ROOT");
    char *places = strdup(getenv("EMPTY_ROOT_BINDS"));
    char *sockets = strdup(getenv("CONTAINERD_WASM_SHIMS_RUN"));
    char *cwd = getcwd(NULL, 0);

    (void)argc;
    check(unshare(CLONE_NEWNS), "unshare");
    check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "make private");
    check(mount(root, root, NULL, MS_BIND, NULL), root);
    for (char *place = strtok(places, ":"); place; place = strtok(NULL, ":"))
        bind(root, place);
    *strrchr(sockets, '/') = '\0';
    bind(root, sockets);
    check(chdir(root), root);
    check((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount");
    check(chdir(cwd), cwd);
    unsetenv("EMPTY_ROOT");
    unsetenv("EMPTY_ROOT_BINDS");
    check(execv(strrchr(argv[0], '/'), argv), "execute");
}
