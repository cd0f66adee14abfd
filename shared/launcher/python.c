/*
 * Executing the Python side by the loader that was unpacked with it: nothing of the node's own
 * /lib is read.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OWN_ARGUMENTS 12

/* Have everything that will be executed in place. The reason why not is in `failure`. */
bool python_prepare(const struct bundle *bundle, struct home *home)
{
    home->locks[0] = home->locks[1] = -1;
    return *bundle->execute || root_prepare(bundle, home);
}

static size_t count(char **strings)
{
    size_t n = 0;

    while (strings[n])
        n++;
    return n;
}

static bool pass_on(int fd)
{
    return fcntl(fd, F_SETFD, 0) == 0;
}

/* Become the Python side; returns only on failure, with errno. */
void python_execute(const struct bundle *bundle, const struct home *home, char **arguments,
                    char **environment)
{
    char libraries[PATH_MAX], loader[PATH_MAX], python[PATH_MAX], program[PATH_MAX];
    char name[64], script[PATH_MAX], locks[32];
    size_t own = 0, n = count(arguments);
    char **command = calloc(OWN_ARGUMENTS + n + 1, sizeof *command);

    if (!command)
        return;
    if (*bundle->execute) {
        command[own++] = (char *)bundle->execute;
        memcpy(command + own, arguments, n * sizeof *command);
        execve(bundle->execute, command, environment);
        free(command);
        return;
    }
    errno = ENAMETOOLONG;
    if (join(libraries, sizeof libraries, home->runtime, "lib") &&
        join(loader, sizeof loader, libraries, bundle->loader) &&
        join(program, sizeof program, home->runtime, "bin") &&
        join(python, sizeof python, program, bundle->python) &&
        join(script, sizeof script, home->package, "main.pyc") && pass_on(home->locks[0]) &&
        pass_on(home->locks[1])) {
        snprintf(name, sizeof name, "containerd-shim-%s-v1", bundle->shim);
        snprintf(locks, sizeof locks, "%d,%d", home->locks[0], home->locks[1]);
        command[own++] = name;
        command[own++] = "--inhibit-cache"; /* of the node: /etc/ld.so.cache */
        command[own++] = "--library-path";
        command[own++] = libraries;
        command[own++] = "--argv0"; /* where Python looks for its library from */
        command[own++] = python;
        command[own++] = python;
        command[own++] = "-ISB";
        command[own++] = script;
        command[own++] = locks;
        command[own++] = (char *)bundle->build_id;
        memcpy(command + own, arguments, n * sizeof *command);
        execve(loader, command, environment);
    }
    free(command);
}
