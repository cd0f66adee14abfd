/* Uses key-value stores as the lines of the request's body say, by the interface that the path
 * ends with: /v1, /v1.5 or /v2.
 *
 *   open LABEL, which is answered with the handle and is used from then on; use HANDLE; close
 *   get KEY, set KEY VALUE, delete KEY, exists KEY, get-keys
 *   fill LABEL    opens stores until that fails, and says how many there were
 *
 * Each line is answered with a line.
 */
#include "lines.h"

#define FUNCTIONS(module, prefix, static_, method, drop)                                     \
  HOST_IMPORT(module, static_ "open")                                                        \
  void prefix##_open(const char *label, size_t label_size, union host_result *result);       \
  HOST_IMPORT(module, method "get")                                                          \
  void prefix##_get(uint32_t store, const char *key, size_t key_size,                        \
                    union host_result *result);                                              \
  HOST_IMPORT(module, method "set")                                                          \
  void prefix##_set(uint32_t store, const char *key, size_t key_size, const void *value,     \
                    size_t value_size, union host_result *result);                           \
  HOST_IMPORT(module, method "delete")                                                       \
  void prefix##_delete(uint32_t store, const char *key, size_t key_size,                     \
                       union host_result *result);                                           \
  HOST_IMPORT(module, method "exists")                                                       \
  void prefix##_exists(uint32_t store, const char *key, size_t key_size,                     \
                       union host_result *result);                                           \
  HOST_IMPORT(module, method "get-keys")                                                     \
  void prefix##_get_keys(uint32_t store, union host_result *result);                         \
  HOST_IMPORT(module, drop)                                                                  \
  void prefix##_close(uint32_t store);

FUNCTIONS("key-value", v1, "", "", "close")
FUNCTIONS("fermyon:spin/key-value", v15, "", "", "close")
FUNCTIONS("fermyon:spin/key-value@2.0.0", v2, "[static]store.", "[method]store.",
          "[resource-drop]store")

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

static enum { VERSION_1, VERSION_15, VERSION_2 } version;
static uint32_t store;

#define CALL(name, ...)                                       \
  do {                                                        \
    if (version == VERSION_1) v1_##name(__VA_ARGS__);         \
    if (version == VERSION_15) v15_##name(__VA_ARGS__);       \
    if (version == VERSION_2) v2_##name(__VA_ARGS__);         \
  } while (0)

/* The error's case, and its text if it has one. */
static bool failed(const union host_result *result, struct spin_response *response) {
  if (result->bytes[0] == 0) return false;
  host_say(response, "error %d", result->bytes[4]);
  if (result->bytes[4] == (version == VERSION_2 ? 3 : 5)) {
    struct spin_string reason = host_string(result->bytes + 8);
    host_say(response, " %.*s", HOST_TEXT(reason));
  }
  return true;
}

static bool open_store(struct spin_string label, struct spin_response *response) {
  union host_result result;
  CALL(open, label.data, label.size, &result);
  if (failed(&result, response)) return false;
  store = host_u32(result.bytes + 4);
  return true;
}

static void call(const struct words *words, struct spin_response *response) {
  struct spin_string name = words->items[0], first = words->items[1], second = words->items[2];
  union host_result result;
  if (is_word(name, "open")) {
    if (open_store(first, response)) host_say(response, "%u", store);
  } else if (is_word(name, "fill")) {
    int count = 0;
    while (open_store(first, response)) count++;
    host_say(response, " after %d", count);
  } else if (is_word(name, "use")) {
    store = (uint32_t)strtoul(first.data, NULL, 10);
    host_say(response, "ok");
  } else if (is_word(name, "close")) {
    CALL(close, store);
    host_say(response, "ok");
  } else if (is_word(name, "get")) {
    CALL(get, store, first.data, first.size, &result);
    if (failed(&result, response)) return;
    if (version != VERSION_2) say_text(response, host_string(result.bytes + 4));
    else if (result.bytes[4] == 0) host_say(response, "none");
    else say_text(response, host_string(result.bytes + 8));
  } else if (is_word(name, "set")) {
    CALL(set, store, first.data, first.size, second.data, second.size, &result);
    if (!failed(&result, response)) host_say(response, "ok");
  } else if (is_word(name, "delete")) {
    CALL(delete, store, first.data, first.size, &result);
    if (!failed(&result, response)) host_say(response, "ok");
  } else if (is_word(name, "exists")) {
    CALL(exists, store, first.data, first.size, &result);
    if (!failed(&result, response)) host_say(response, result.bytes[4] ? "yes" : "no");
  } else if (is_word(name, "get-keys")) {
    CALL(get_keys, store, &result);
    if (!failed(&result, response)) say_texts(response, result.bytes + 4);
  } else {
    host_say(response, "no such call");
  }
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  const char *path = strrchr(request->uri.data, '/');
  version = strcmp(path, "/v2") == 0 ? VERSION_2 : strcmp(path, "/v1.5") == 0 ? VERSION_15 : VERSION_1;
  struct words words;
  for (char *rest = request->body.data; next_line(&rest, &words);) {
    call(&words, response);
    host_say(response, "\n");
  }
}
