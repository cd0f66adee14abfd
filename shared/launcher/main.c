/* The command line: print the version, ask the zygote, or execute the Python side. */
#define _GNU_SOURCE
#include "launcher.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_FAILED 1
#define EXIT_SOFTWARE 70 /* sysexits.h */

extern char **environ;

static bool is_version(const char *argument)
{
    return !strcmp(argument, "-v") || !strcmp(argument, "--version");
}

static bool is_forwarded(const char *command)
{
    return !strcmp(command, "start") || !strcmp(command, "delete");
}

static bool zygote_allowed(void)
{
    const char *forbidden = getenv("CONTAINERD_WASM_SHIMS_NO_ZYGOTE");

    return !(forbidden && *forbidden);
}

int main(int argc, char **argv)
{
    struct bundle bundle;
    struct home home;
    const char *last = argv[argc > 0 ? argc - 1 : 0];
    int code;

    if (argc < 1)
        return EXIT_SOFTWARE;
    if (!bundle_open(&bundle)) {
        fprintf(stderr, "%s: this file is not whole: copy it again\n", argv[0]);
        return EXIT_FAILED;
    }
    if (argc == 2 && is_version(last))
        return fputs(bundle.version_text, stdout) < 0 || fflush(stdout) ? EXIT_FAILED : 0;
    if (argc > 1 && is_forwarded(last) && zygote_allowed()) {
        code = zygote_forward(&bundle, argv + 1, last);
        if (code >= 0)
            return code;
    }
    if (!python_prepare(&bundle, &home)) {
        fprintf(stderr,
                "%s: cannot unpack: %s; set CONTAINERD_WASM_SHIMS_ROOT to another place\n", argv[0],
                failure);
        return EXIT_FAILED;
    }
    python_execute(&bundle, &home, argv + 1, environ);
    fprintf(stderr, "%s: cannot execute its Python: %s\n", argv[0], strerror(errno));
    return EXIT_FAILED;
}
