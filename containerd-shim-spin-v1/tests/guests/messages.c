/* Takes messages of Redis channels, and prints them; some do what they say.
 *
 *   fail   the component returns an error      trap   it traps
 *   loop   it never returns
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(name)))

void __wasm_call_ctors(void);
void __wasm_call_dtors(void);

EXPORT("canonical_abi_realloc")
void *reallocate(void *old, size_t old_size, size_t align, size_t new_size) {
  (void)old_size, (void)align;
  void *block = realloc(old, new_size + 1);
  if (block == NULL) abort();
  return block;
}

/* A result: 0 for ok, or 1 and the error, of which there is one that is none (0) and one (1). */
EXPORT("handle-redis-message")
const uint8_t *handle_redis_message(const char *payload, size_t size) {
  static uint8_t result[2];
  __wasm_call_ctors();
  printf("message %.*s\n", (int)size, payload);
  if (size == 4 && memcmp(payload, "trap", 4) == 0) __builtin_trap();
  if (size == 4 && memcmp(payload, "loop", 4) == 0)
    for (volatile int i = 0;; i++) {
    }
  if (size == 4 && memcmp(payload, "fail", 4) == 0) {
    result[0] = 1;
    result[1] = 1;
  }
  __wasm_call_dtors();
  return result;
}
