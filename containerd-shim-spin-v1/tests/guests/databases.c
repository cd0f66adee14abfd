/* Runs statements as the lines of the request's body say, of the kind of server and by the interface
 * that the path names: /pg/v1, /pg/v1.5, /pg/v2, /mysql/v1 and so on. The header "address" is the
 * server's.
 *
 *   query STATEMENT PARAMETER...       answered with columns (name type) and rows
 *   execute STATEMENT PARAMETER...     answered with how many rows, of MySQL with ok
 *   open ADDRESS, use HANDLE, drop     of v2: another connection, or none
 *
 * Values are shown as their case's number, a colon, and what they hold.
 */
#include "fields.h"

struct parameter {
  uint8_t tag;
  union {
    uint8_t boolean;
    int64_t number; /* the low bytes of narrower ones come first */
    float single;
    double wide;
    struct spin_string text;
  };
};
_Static_assert(sizeof(struct parameter) == 16, "the ABI's parameter");

static const char *const KINDS[] = {"boolean", "int8",       "int16",      "int32",  "int64",
                                    "uint8",   "uint16",     "uint32",     "uint64", "floating32",
                                    "floating64", "str",     "binary",     "db-null", NULL};
enum { BOOLEAN, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOATING32, FLOATING64,
       STR, BINARY, DB_NULL, UNSUPPORTED };

#define STATEMENT                                                                     \
  const char *statement, size_t statement_size, const struct parameter *parameters,  \
      size_t parameters_size, union host_result *result
#define FUNCTIONS(module, prefix, method, WHERE) \
  HOST_IMPORT(module, method "query")            \
  void prefix##_query(WHERE, STATEMENT);         \
  HOST_IMPORT(module, method "execute")          \
  void prefix##_execute(WHERE, STATEMENT);
#define CONNECTIONS(module, prefix)                                                        \
  HOST_IMPORT(module, "[static]connection.open")                                           \
  void prefix##_open(const char *address, size_t address_size, union host_result *result); \
  HOST_IMPORT(module, "[resource-drop]connection")                                         \
  void prefix##_drop(uint32_t connection);

#define BY_ADDRESS const char *address, size_t address_size
FUNCTIONS("outbound-pg", pg_v1, "", BY_ADDRESS)
FUNCTIONS("fermyon:spin/postgres", pg_v15, "", BY_ADDRESS)
FUNCTIONS("fermyon:spin/postgres@2.0.0", pg_v2, "[method]connection.", uint32_t connection)
CONNECTIONS("fermyon:spin/postgres@2.0.0", pg_v2)
FUNCTIONS("outbound-mysql", mysql_v1, "", BY_ADDRESS)
FUNCTIONS("fermyon:spin/mysql", mysql_v15, "", BY_ADDRESS)
FUNCTIONS("fermyon:spin/mysql@2.0.0", mysql_v2, "[method]connection.", uint32_t connection)
CONNECTIONS("fermyon:spin/mysql@2.0.0", mysql_v2)

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

static enum { VERSION_1, VERSION_15, VERSION_2 } version;
static bool is_mysql;
static struct spin_string address;
static uint32_t connection;

#define CALL(kind, name, ...)                                                                      \
  do {                                                                                             \
    if (version == VERSION_1) kind##_v1_##name(address.data, address.size, __VA_ARGS__);           \
    if (version == VERSION_15) kind##_v15_##name(address.data, address.size, __VA_ARGS__);         \
    if (version == VERSION_2) kind##_v2_##name(connection, __VA_ARGS__);                           \
  } while (0)

/* The error's case, and its text. */
static bool failed(const union host_result *result, size_t at, struct spin_response *response) {
  if (result->bytes[0] == 0) return false;
  host_say(response, "error %d %.*s", result->bytes[at], HOST_TEXT(host_string(result->bytes + at + 4)));
  return true;
}

static struct parameter parameter_of(char *field) {
  struct spin_string text;
  struct parameter parameter = {.tag = kind_of(field, KINDS, &text)};
  switch (parameter.tag) {
    case BOOLEAN: parameter.boolean = is_word(text, "true"); break;
    case FLOATING32: parameter.single = strtof(text.data, NULL); break;
    case FLOATING64: parameter.wide = strtod(text.data, NULL); break;
    case STR: case BINARY: parameter.text = text; break;
    case UINT64: parameter.number = (int64_t)strtoull(text.data, NULL, 10); break;
    case DB_NULL: break;
    default: parameter.number = strtoll(text.data, NULL, 10);
  }
  return parameter;
}

static void say_value(struct spin_response *response, const char *at) {
  uint8_t tag = (uint8_t)at[0];
  const char *value = at + 8;
  host_say(response, "%d", tag);
  if (tag < DB_NULL) host_say(response, ":");
  int64_t number = host_s64(value);
  switch (tag) {
    case BOOLEAN: host_say(response, *value ? "true" : "false"); break;
    case INT8: host_say(response, "%d", (int8_t)number); break;
    case INT16: host_say(response, "%d", (int16_t)number); break;
    case INT32: host_say(response, "%d", (int32_t)number); break;
    case INT64: host_say(response, "%lld", (long long)number); break;
    case UINT8: host_say(response, "%u", (uint8_t)number); break;
    case UINT16: host_say(response, "%u", (uint16_t)number); break;
    case UINT32: host_say(response, "%u", (uint32_t)number); break;
    case UINT64: host_say(response, "%llu", (unsigned long long)number); break;
    case FLOATING32: host_say(response, "%.9g", (double)host_f32(value)); break;
    case FLOATING64: host_say(response, "%.17g", host_f64(value)); break;
    case STR: say_text(response, host_string(value)); break;
    case BINARY: say_bytes(response, host_string(value)); break;
  }
}

static void say_rows(struct spin_response *response, const uint8_t *at) {
  struct spin_string columns = host_string(at), rows = host_string(at + 8);
  for (size_t i = 0; i < columns.size; i++) {
    const char *column = columns.data + 12 * i;
    host_say(response, i ? ", %.*s %d" : "%.*s %d", HOST_TEXT(host_string(column)), column[8]);
  }
  for (size_t i = 0; i < rows.size; i++) {
    struct spin_string row = host_string(rows.data + 8 * i);
    for (size_t j = 0; j < row.size; j++) {
      host_say(response, j ? ", " : "; ");
      say_value(response, row.data + 16 * j);
    }
  }
}

static void run(const struct fields *fields, bool is_query, struct spin_response *response) {
  struct parameter parameters[MAX_FIELDS];
  size_t count = fields->count - 2;
  for (size_t i = 0; i < count; i++) parameters[i] = parameter_of(fields->items[i + 2]);
  const char *statement = fields->items[1];
  size_t size = strlen(statement);
  union host_result result;
  if (is_query) {
    if (is_mysql) CALL(mysql, query, statement, size, parameters, count, &result);
    else CALL(pg, query, statement, size, parameters, count, &result);
    if (!failed(&result, 4, response)) say_rows(response, result.bytes + 4);
  } else if (is_mysql) {
    CALL(mysql, execute, statement, size, parameters, count, &result);
    if (!failed(&result, 4, response)) host_say(response, "ok");
  } else {
    CALL(pg, execute, statement, size, parameters, count, &result);
    if (!failed(&result, 8, response)) host_say(response, "%llu", (unsigned long long)host_s64(result.bytes + 8));
  }
}

static bool open_connection(struct spin_string where, struct spin_response *response) {
  union host_result result;
  if (is_mysql) mysql_v2_open(where.data, where.size, &result);
  else pg_v2_open(where.data, where.size, &result);
  if (failed(&result, 4, response)) return false;
  connection = host_u32(result.bytes + 4);
  return true;
}

static void call(const struct fields *fields, struct spin_response *response) {
  const char *name = fields->items[0];
  if (strcmp(name, "query") == 0 || strcmp(name, "execute") == 0) {
    run(fields, name[0] == 'q', response);
  } else if (strcmp(name, "open") == 0) {
    struct spin_string where = {fields->items[1], strlen(fields->items[1])};
    if (open_connection(where, response)) host_say(response, "%u", connection);
  } else if (strcmp(name, "use") == 0) {
    connection = (uint32_t)strtoul(fields->items[1], NULL, 10);
    host_say(response, "ok");
  } else if (strcmp(name, "drop") == 0) {
    if (is_mysql) mysql_v2_drop(connection);
    else pg_v2_drop(connection);
    host_say(response, "ok");
  } else {
    host_say(response, "no such call");
  }
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  const char *path = request->uri.data;
  is_mysql = strncmp(path, "/mysql/", 7) == 0;
  const char *interface = strrchr(path, '/');
  version = strcmp(interface, "/v2") == 0    ? VERSION_2
            : strcmp(interface, "/v1.5") == 0 ? VERSION_15
                                              : VERSION_1;
  const char *given = spin_request_header(request, "address");
  address = (struct spin_string){(char *)given, strlen(given)};
  if (version == VERSION_2 && !open_connection(address, response)) return;
  struct fields fields;
  for (char *rest = request->body.data; next_fields(&rest, &fields);) {
    call(&fields, response);
    host_say(response, "\n");
  }
}
