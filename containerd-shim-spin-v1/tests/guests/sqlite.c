/* Runs statements of SQLite databases as the lines of the request's body say, by the interface that
 * the path names: /v1, /v1.5 or /v2.
 *
 *   open LABEL, which is answered with the handle and is used from then on; use HANDLE; close
 *   execute STATEMENT PARAMETER...     answered with names of columns and rows
 *   fill LABEL    opens databases until that fails, and says how many there were
 *
 * Values are shown as their case's number, a colon, and what they hold.
 */
#include "fields.h"

struct value {
  uint8_t tag;
  union {
    int64_t integer;
    double real;
    struct spin_string text;
  };
};
_Static_assert(sizeof(struct value) == 16, "the ABI's value");

static const char *const KINDS[] = {"integer", "real", "text", "blob", "null", NULL};
enum { INTEGER, REAL, TEXT, BLOB, NONE };

#define FUNCTIONS(module, prefix, open_name, execute_name, close_name)                      \
  HOST_IMPORT(module, open_name)                                                            \
  void prefix##_open(const char *label, size_t label_size, union host_result *result);      \
  HOST_IMPORT(module, execute_name)                                                         \
  void prefix##_execute(uint32_t database, const char *statement, size_t statement_size,    \
                        const struct value *values, size_t count, union host_result *result); \
  HOST_IMPORT(module, close_name)                                                           \
  void prefix##_close(uint32_t database);

FUNCTIONS("sqlite", v1, "open", "execute", "close")
FUNCTIONS("fermyon:spin/sqlite", v15, "open", "execute", "close")
FUNCTIONS("fermyon:spin/sqlite@2.0.0", v2, "[static]connection.open", "[method]connection.execute",
          "[resource-drop]connection")

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

static enum { VERSION_1, VERSION_15, VERSION_2 } version;
static uint32_t database;

#define CALL(name, ...)                                 \
  do {                                                  \
    if (version == VERSION_1) v1_##name(__VA_ARGS__);   \
    if (version == VERSION_15) v15_##name(__VA_ARGS__); \
    if (version == VERSION_2) v2_##name(__VA_ARGS__);   \
  } while (0)

/* The error's case, and its text if it has one. */
static bool failed(const union host_result *result, struct spin_response *response) {
  if (result->bytes[0] == 0) return false;
  host_say(response, "error %d", result->bytes[4]);
  if (result->bytes[4] == 4) {
    struct spin_string reason = host_string(result->bytes + 8);
    host_say(response, " %.*s", HOST_TEXT(reason));
  }
  return true;
}

static struct value value_of(char *field) {
  struct spin_string text;
  struct value value = {.tag = kind_of(field, KINDS, &text)};
  if (value.tag == INTEGER) value.integer = strtoll(text.data, NULL, 10);
  else if (value.tag == REAL) value.real = strtod(text.data, NULL);
  else if (value.tag != NONE) value.text = text;
  return value;
}

static void say_value(struct spin_response *response, const char *at) {
  uint8_t tag = (uint8_t)at[0];
  host_say(response, tag < NONE ? "%d:" : "%d", tag);
  if (tag == INTEGER) host_say(response, "%lld", (long long)host_s64(at + 8));
  if (tag == REAL) host_say(response, "%.17g", host_f64(at + 8));
  if (tag == TEXT) say_text(response, host_string(at + 8));
  if (tag == BLOB) say_bytes(response, host_string(at + 8));
}

static void say_rows(struct spin_response *response, const uint8_t *at) {
  struct spin_string columns = host_string(at), rows = host_string(at + 8);
  for (size_t i = 0; i < columns.size; i++) {
    if (i > 0) host_say(response, ", ");
    host_say(response, "%.*s", HOST_TEXT(host_string(columns.data + 8 * i)));
  }
  for (size_t i = 0; i < rows.size; i++) {
    struct spin_string row = host_string(rows.data + 8 * i);
    for (size_t j = 0; j < row.size; j++) {
      host_say(response, j ? ", " : "; ");
      say_value(response, row.data + 16 * j);
    }
  }
}

static bool open_database(const char *label, struct spin_response *response) {
  union host_result result;
  CALL(open, label, strlen(label), &result);
  if (failed(&result, response)) return false;
  database = host_u32(result.bytes + 4);
  return true;
}

static void call(const struct fields *fields, struct spin_response *response) {
  const char *name = fields->items[0], *first = fields->items[1];
  if (strcmp(name, "execute") == 0) {
    struct value values[MAX_FIELDS];
    size_t count = fields->count - 2;
    for (size_t i = 0; i < count; i++) values[i] = value_of(fields->items[i + 2]);
    union host_result result;
    CALL(execute, database, first, strlen(first), values, count, &result);
    if (!failed(&result, response)) say_rows(response, result.bytes + 4);
  } else if (strcmp(name, "open") == 0) {
    if (open_database(first, response)) host_say(response, "%u", database);
  } else if (strcmp(name, "fill") == 0) {
    int count = 0;
    while (open_database(first, response)) count++;
    host_say(response, " after %d", count);
  } else if (strcmp(name, "use") == 0) {
    database = (uint32_t)strtoul(first, NULL, 10);
    host_say(response, "ok");
  } else if (strcmp(name, "close") == 0) {
    CALL(close, database);
    host_say(response, "ok");
  } else {
    host_say(response, "no such call");
  }
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  const char *path = request->uri.data;
  version = strcmp(path, "/v2") == 0 ? VERSION_2 : strcmp(path, "/v1.5") == 0 ? VERSION_15 : VERSION_1;
  struct fields fields;
  for (char *rest = request->body.data; next_fields(&rest, &fields);) {
    call(&fields, response);
    host_say(response, "\n");
  }
}
