/* QuickJS as an ordinary WASI command: `javascript.wasm APP.js [ARGUMENT...]`.
 *
 * A source is a module, and may import others by paths that begin with a dot. Of qjs's own names there
 * are `print`, `console.log`, `scriptArgs`, `std.getenv(name)`, `std.in.readAsString()` and
 * `std.exit(code)`.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quickjs.h"

/* Of the 512 KiB that hosts give a guest's calls; quickjs.patch has frames counted in this measure. */
#define STACK_BYTES 430000

/* Returns all that a file has, a NUL at its end, NULL if it cannot be read. */
static char *read_all(FILE *file, size_t *size)
{
    size_t room = 1 << 16;
    char *text = malloc(room), *more;

    *size = 0;
    while (text) {
        *size += fread(text + *size, 1, room - *size - 1, file);
        if (*size < room - 1)
            break;
        more = realloc(text, room *= 2);
        if (!more)
            free(text);
        text = more;
    }
    if (text && ferror(file)) {
        free(text);
        return NULL;
    }
    if (text)
        text[*size] = '\0';
    return text;
}

static JSModuleDef *load_module(JSContext *context, const char *name, void *opaque)
{
    FILE *file = fopen(name, "r");
    char *source = NULL;
    size_t size;
    JSValue code;

    (void)opaque;
    if (file) {
        source = read_all(file, &size);
        fclose(file);
    }
    if (!source) {
        JS_ThrowReferenceError(context, "cannot read %s", name);
        return NULL;
    }
    code = JS_Eval(context, source, size, name, JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
    free(source);
    if (JS_IsException(code))
        return NULL;
    JS_FreeValue(context, code); /* the context keeps its modules */
    return JS_VALUE_GET_PTR(code);
}

static JSValue print(JSContext *context, JSValueConst self, int count, JSValueConst *values)
{
    (void)self;
    for (int i = 0; i < count; i++) {
        size_t size;
        const char *text = JS_ToCStringLen(context, &size, values[i]);
        if (!text)
            return JS_EXCEPTION;
        if (i)
            putchar(' ');
        fwrite(text, 1, size, stdout);
        JS_FreeCString(context, text);
    }
    putchar('\n');
    return JS_UNDEFINED;
}

static JSValue std_getenv(JSContext *context, JSValueConst self, int count, JSValueConst *values)
{
    const char *name = JS_ToCString(context, values[0]), *value;

    (void)self, (void)count;
    if (!name)
        return JS_EXCEPTION;
    value = getenv(name);
    JS_FreeCString(context, name);
    return value ? JS_NewString(context, value) : JS_UNDEFINED;
}

static JSValue read_as_string(JSContext *context, JSValueConst self, int count, JSValueConst *values)
{
    size_t size;
    char *text = read_all(stdin, &size);
    JSValue string;

    (void)self, (void)count, (void)values;
    if (!text)
        return JS_ThrowInternalError(context, "cannot read standard input");
    string = JS_NewStringLen(context, text, size);
    free(text);
    return string;
}

static JSValue std_exit(JSContext *context, JSValueConst self, int count, JSValueConst *values)
{
    int32_t code;

    (void)self, (void)count;
    if (JS_ToInt32(context, &code, values[0]))
        return JS_EXCEPTION;
    exit(code);
}

static void set_function(JSContext *context, JSValueConst object, const char *name,
                         JSCFunction *function, int length)
{
    JS_SetPropertyStr(context, object, name, JS_NewCFunction(context, function, name, length));
}

static void set_globals(JSContext *context, int argc, char **argv)
{
    JSValue global = JS_GetGlobalObject(context), console = JS_NewObject(context);
    JSValue std = JS_NewObject(context), in = JS_NewObject(context);
    JSValue arguments = JS_NewArray(context);

    for (int i = 1; i < argc; i++)
        JS_SetPropertyUint32(context, arguments, i - 1, JS_NewString(context, argv[i]));
    set_function(context, global, "print", print, 1);
    set_function(context, console, "log", print, 1);
    set_function(context, std, "getenv", std_getenv, 1);
    set_function(context, std, "exit", std_exit, 1);
    set_function(context, in, "readAsString", read_as_string, 0);
    JS_SetPropertyStr(context, std, "in", in);
    JS_SetPropertyStr(context, global, "std", std);
    JS_SetPropertyStr(context, global, "console", console);
    JS_SetPropertyStr(context, global, "scriptArgs", arguments);
    JS_FreeValue(context, global);
}

/* Writes what is wrong, and where, to standard error. */
static void complain(JSContext *context, JSValueConst reason)
{
    const char *text = JS_ToCString(context, reason);
    JSValue stack = JS_IsError(context, reason) ? JS_GetPropertyStr(context, reason, "stack")
                                                : JS_UNDEFINED;

    fprintf(stderr, "%s\n", text ? text : "an exception that has no text");
    JS_FreeCString(context, text);
    if (JS_IsString(stack) && (text = JS_ToCString(context, stack))) {
        fputs(text, stderr);
        JS_FreeCString(context, text);
    }
    JS_FreeValue(context, stack);
}

static int complain_of_exception(JSContext *context)
{
    JSValue reason = JS_GetException(context);

    complain(context, reason);
    JS_FreeValue(context, reason);
    return 1;
}

static void note_rejection(JSContext *context, JSValueConst promise, JSValueConst reason,
                           JS_BOOL is_handled, void *opaque)
{
    (void)promise;
    if (is_handled)
        return;
    complain(context, reason);
    *(int *)opaque = 1;
}

static int run(JSRuntime *runtime, JSContext *context, const char *name)
{
    JSModuleDef *module = load_module(context, name, NULL);
    JSContext *other;
    JSValue value;
    int more, failed = 0;

    if (!module)
        return complain_of_exception(context);
    JS_SetHostPromiseRejectionTracker(runtime, note_rejection, &failed);
    value = JS_EvalFunction(context, JS_DupValue(context, JS_MKPTR(JS_TAG_MODULE, module)));
    if (JS_IsException(value))
        return complain_of_exception(context);
    JS_FreeValue(context, value);
    while ((more = JS_ExecutePendingJob(runtime, &other)) > 0)
        continue;
    return more < 0 ? complain_of_exception(other) : failed;
}

int main(int argc, char **argv)
{
    JSRuntime *runtime = JS_NewRuntime();
    JSContext *context;

    if (argc < 2) {
        fputs("usage: javascript APP.js [ARGUMENT...]\n", stderr);
        return 2;
    }
    JS_SetMaxStackSize(runtime, STACK_BYTES);
    JS_SetModuleLoaderFunc(runtime, NULL, load_module, NULL);
    context = JS_NewContext(runtime);
    set_globals(context, argc, argv);
    return run(runtime, context, argv[1]);
}
