/*
 * CPython as an ordinary WASI command: `python.wasm APP.py [ARGUMENT...]`, or `-c CODE`.
 *
 * The program's own modules are looked for in its directory. Nothing of the environment, of which much
 * comes from a request where CGI is spoken, changes how it starts.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

extern const struct _frozen wws_frozen_modules[];

static void fail(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void configure(PyConfig *config, int argc, char **argv)
{
    PyConfig_InitIsolatedConfig(config);
    config->site_import = 0;
    config->write_bytecode = 0;
    config->pathconfig_warnings = 0;
    config->isolated = 0; /* it would hide the program's own directory; the environment stays unread */
    config->safe_path = 0;
    config->parse_argv = 1;
    config->module_search_paths_set = 1; /* every module of the library is frozen */
    fail(PyConfig_SetString(config, &config->home, L"/"));
    fail(PyConfig_SetString(config, &config->program_name, L"python3.11"));
    fail(PyConfig_SetString(config, &config->executable, L""));
    fail(PyConfig_SetString(config, &config->stdio_encoding, L"utf-8"));
    fail(PyConfig_SetString(config, &config->stdio_errors, L"backslashreplace"));
    fail(PyConfig_SetBytesArgv(config, argc, argv));
}

int main(int argc, char **argv)
{
    PyPreConfig preconfig;
    PyConfig config;

    PyImport_FrozenModules = wws_frozen_modules;
    PyPreConfig_InitIsolatedConfig(&preconfig);
    preconfig.utf8_mode = 1;
    fail(Py_PreInitialize(&preconfig));
    configure(&config, argc, argv);
    fail(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
    return Py_RunMain();
}
