/* Calls Redis as the lines of the request's body say, by the interface that the path ends
 * with: /v1, /v1.5 or /v2. The header "address" is the server's.
 *
 *   get KEY, set KEY VALUE, incr KEY, del KEY..., sadd KEY VALUE..., smembers KEY,
 *   srem KEY VALUE..., publish CHANNEL PAYLOAD, execute COMMAND WORD...
 *   open ADDRESS, use HANDLE, drop     of /v2: another connection, or none
 *
 * A word of execute is a number if it begins with #. Each line is answered with a line.
 */
#include "lines.h"

#define V1 "outbound-redis"
#define V15 "fermyon:spin/redis"
#define V2 "fermyon:spin/redis@2.0.0"

#define STRINGS const struct spin_string *items, size_t count

/* ADDRESS is the server's address in 1.x, and a connection in 2.0. */
#define FUNCTIONS(module, prefix, method, ADDRESS)                                              \
  HOST_IMPORT(module, method "publish")                                                         \
  void prefix##_publish(ADDRESS, const char *channel, size_t channel_size, const void *payload, \
                        size_t payload_size, union host_result *result);                        \
  HOST_IMPORT(module, method "get")                                                             \
  void prefix##_get(ADDRESS, const char *key, size_t key_size, union host_result *result);      \
  HOST_IMPORT(module, method "set")                                                             \
  void prefix##_set(ADDRESS, const char *key, size_t key_size, const void *value,               \
                    size_t value_size, union host_result *result);                              \
  HOST_IMPORT(module, method "incr")                                                            \
  void prefix##_incr(ADDRESS, const char *key, size_t key_size, union host_result *result);     \
  HOST_IMPORT(module, method "del")                                                             \
  void prefix##_del(ADDRESS, STRINGS, union host_result *result);                               \
  HOST_IMPORT(module, method "sadd")                                                            \
  void prefix##_sadd(ADDRESS, const char *key, size_t key_size, STRINGS,                        \
                     union host_result *result);                                                \
  HOST_IMPORT(module, method "smembers")                                                        \
  void prefix##_smembers(ADDRESS, const char *key, size_t key_size, union host_result *result); \
  HOST_IMPORT(module, method "srem")                                                            \
  void prefix##_srem(ADDRESS, const char *key, size_t key_size, STRINGS,                        \
                     union host_result *result);                                                \
  HOST_IMPORT(module, method "execute")                                                         \
  void prefix##_execute(ADDRESS, const char *command, size_t command_size,                      \
                        const struct parameter *items, size_t count, union host_result *result);

struct parameter {
  uint8_t tag; /* 0: number, 1: bytes */
  union {
    int64_t number;
    struct spin_string bytes;
  };
};
_Static_assert(sizeof(struct parameter) == 16, "the ABI's parameter");

#define BY_ADDRESS const char *address, size_t address_size
FUNCTIONS(V1, v1, "", BY_ADDRESS)
FUNCTIONS(V15, v15, "", BY_ADDRESS)
FUNCTIONS(V2, v2, "[method]connection.", uint32_t connection)

HOST_IMPORT(V2, "[static]connection.open")
void v2_open(const char *address, size_t address_size, union host_result *result);
HOST_IMPORT(V2, "[resource-drop]connection")
void v2_drop(uint32_t connection);

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

static enum { VERSION_1, VERSION_15, VERSION_2 } version;
static struct spin_string address;
static uint32_t connection;

#define CALL(name, ...)                                                                       \
  do {                                                                                        \
    if (version == VERSION_1) v1_##name(address.data, address.size, __VA_ARGS__, &result);    \
    if (version == VERSION_15) v15_##name(address.data, address.size, __VA_ARGS__, &result);  \
    if (version == VERSION_2) v2_##name(connection, __VA_ARGS__, &result);                    \
  } while (0)

static bool failed(const union host_result *result, size_t at, struct spin_response *response) {
  if (result->bytes[0] == 0) return false;
  host_say(response, "error %d", result->bytes[at]);
  if (version == VERSION_2 && result->bytes[at] == 3) {
    struct spin_string reason = host_string(result->bytes + at + 4);
    host_say(response, " %.*s", HOST_TEXT(reason));
  }
  return true;
}

static void say_results(struct spin_response *response, const void *at) {
  struct spin_string list = host_string(at);
  for (size_t i = 0; i < list.size; i++) {
    const char *result = list.data + 16 * i;
    if (i > 0) host_say(response, " ");
    if (result[0] == 0) host_say(response, "nil");
    if (result[0] == 1) host_say(response, "+");
    if (result[0] == 2) host_say(response, "%lld", (long long)host_s64(result + 8));
    if (result[0] == 1 || result[0] == 3) say_text(response, host_string(result + 8));
  }
}

static void execute(const struct words *words, struct spin_response *response) {
  struct parameter parameters[MAX_WORDS];
  size_t count = words->count - 2;
  for (size_t i = 0; i < count; i++) {
    struct spin_string word = words->items[i + 2];
    if (word.size > 0 && word.data[0] == '#')
      parameters[i] = (struct parameter){.tag = 0, .number = strtoll(word.data + 1, NULL, 10)};
    else
      parameters[i] = (struct parameter){.tag = 1, .bytes = word};
  }
  union host_result result;
  CALL(execute, words->items[1].data, words->items[1].size, parameters, count);
  if (!failed(&result, 4, response)) say_results(response, result.bytes + 4);
}

/* Functions that return a number, which has 4 bytes in 2.0 but for incr. */
static void say_number(struct spin_response *response, const union host_result *result,
                       bool always_long) {
  bool is_long = always_long || version != VERSION_2;
  if (failed(result, is_long ? 8 : 4, response)) return;
  long long number = is_long ? host_s64(result->bytes + 8) : host_u32(result->bytes + 4);
  host_say(response, "%lld", number);
}

static bool open_connection(struct spin_string where, struct spin_response *response) {
  union host_result result;
  v2_open(where.data, where.size, &result);
  if (failed(&result, 4, response)) return false;
  connection = host_u32(result.bytes + 4);
  return true;
}

static void call(const struct words *words, struct spin_response *response) {
  struct spin_string name = words->items[0], first = words->items[1], second = words->items[2];
  const struct spin_string *more = words->items + 2;
  size_t more_count = words->count - 2;
  union host_result result;
  /* Errors of 1.x are an enum, which lies beside the tag where nothing else is in the result. */
  size_t small = version == VERSION_2 ? 4 : 1;
  if (is_word(name, "get")) {
    CALL(get, first.data, first.size);
    if (failed(&result, 4, response)) return;
    if (version != VERSION_2) say_text(response, host_string(result.bytes + 4));
    else if (result.bytes[4] == 0) host_say(response, "none");
    else say_text(response, host_string(result.bytes + 8));
  } else if (is_word(name, "set")) {
    CALL(set, first.data, first.size, second.data, second.size);
    if (!failed(&result, small, response)) host_say(response, "ok");
  } else if (is_word(name, "publish")) {
    CALL(publish, first.data, first.size, second.data, second.size);
    if (!failed(&result, small, response)) host_say(response, "ok");
  } else if (is_word(name, "incr")) {
    CALL(incr, first.data, first.size);
    say_number(response, &result, true);
  } else if (is_word(name, "del")) {
    CALL(del, words->items + 1, words->count - 1);
    say_number(response, &result, false);
  } else if (is_word(name, "sadd")) {
    CALL(sadd, first.data, first.size, more, more_count);
    say_number(response, &result, false);
  } else if (is_word(name, "srem")) {
    CALL(srem, first.data, first.size, more, more_count);
    say_number(response, &result, false);
  } else if (is_word(name, "smembers")) {
    CALL(smembers, first.data, first.size);
    if (!failed(&result, 4, response)) say_texts(response, result.bytes + 4);
  } else if (is_word(name, "execute")) {
    execute(words, response);
  } else if (is_word(name, "open")) {
    if (open_connection(first, response)) host_say(response, "%u", connection);
  } else if (is_word(name, "use")) {
    connection = (uint32_t)strtoul(first.data, NULL, 10);
    host_say(response, "ok");
  } else if (is_word(name, "drop")) {
    v2_drop(connection);
    host_say(response, "ok");
  } else {
    host_say(response, "no such call");
  }
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  const char *path = strrchr(request->uri.data, '/');
  version = strcmp(path, "/v2") == 0 ? VERSION_2 : strcmp(path, "/v1.5") == 0 ? VERSION_15 : VERSION_1;
  const char *given = spin_request_header(request, "address");
  address = (struct spin_string){(char *)given, strlen(given)};
  if (version == VERSION_2 && !open_connection(address, response)) return;
  struct words words;
  for (char *rest = request->body.data; next_line(&rest, &words);) {
    call(&words, response);
    host_say(response, "\n");
  }
}
