/* Waits on a Redis server: /wait/KEY/SECONDS is BLPOP KEY SECONDS at the server of the component's
 * environment, REDIS_ADDRESS. Answers with the value that came, or "nothing". */
#include "host.h"

struct parameter { /* a variant of int64 and binary */
  uint64_t tag;
  const char *data;
  size_t size;
};
_Static_assert(sizeof(struct parameter) == 16, "the ABI's redis-parameter");

HOST_IMPORT("outbound-redis", "execute")
void redis_execute(const char *address, size_t address_size, const char *command,
                   size_t command_size, const struct parameter *arguments, size_t count,
                   union host_result *result);

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  const char *address = getenv("REDIS_ADDRESS");
  char *key = strchr(request->uri.data + 1, '/');
  char *seconds = key == NULL ? NULL : strchr(key + 1, '/');
  if (address == NULL || seconds == NULL) {
    spin_answer(response, 404, "/wait/KEY/SECONDS\n");
    return;
  }
  *seconds++ = '\0';
  key++;
  const struct parameter arguments[] = {{1, key, strlen(key)}, {1, seconds, strlen(seconds)}};
  union host_result result;
  redis_execute(address, strlen(address), "BLPOP", 5, arguments, 2, &result);
  if (result.bytes[0] != 0) {
    spin_answer(response, 502, "Redis gave an error\n");
    return;
  }
  /* A list of variants of 16 bytes: nil, or the key and its value, both binary. */
  const char *items = (const char *)(uintptr_t)host_u32(result.bytes + 4);
  if (host_u32(result.bytes + 8) < 2) {
    spin_answer(response, 200, "nothing");
    return;
  }
  struct spin_string value = host_string(items + 16 + 8);
  spin_set_body(response, value.data, value.size);
}
