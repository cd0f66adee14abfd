/* A program: shows what it is given, and keeps a value; its first argument may say how it ends. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define IMPORT(name) __attribute__((import_module("kv"), import_name(name)))

struct result {
  uint8_t is_error;
  union {
    uint32_t handle;
    struct {
      char *data;
      uint32_t size;
    } content;
    struct {
      uint8_t code;
      char *data;
      uint32_t size;
    } error;
  };
};

IMPORT("kv::open") void kv_open(const char *, size_t, struct result *);
IMPORT("kv::get") void kv_get(uint32_t, const char *, size_t, struct result *);
IMPORT("kv::set") void kv_set(uint32_t, const char *, size_t, const char *, size_t, struct result *);

__attribute__((export_name("canonical_abi_realloc"))) void *allocate(void *old, size_t old_size,
                                                                     size_t align, size_t size) {
  (void)old_size, (void)align;
  return realloc(old, size);
}

int main(int count, char **arguments) {
  extern char **environ;
  struct result result;
  for (int i = 0; i < count; i++) printf("argument %s\n", arguments[i]);
  if (environ != NULL && *environ != NULL) puts("there is an environment");
  if (getchar() != EOF) puts("there is an input");
  kv_open("store", 5, &result);
  if (result.is_error) {
    printf("error %d %.*s\n", result.error.code, (int)result.error.size, result.error.data);
  } else {
    uint32_t handle = result.handle;
    kv_get(handle, "key", 3, &result);
    if (result.is_error)
      printf("error %d %.*s\n", result.error.code, (int)result.error.size, result.error.data);
    kv_set(handle, "key", 3, "value", 5, &result);
    kv_get(handle, "key", 3, &result);
    printf("got %.*s\n", (int)result.content.size, result.content.data);
  }
  fflush(stdout);
  const char *end = count > 1 ? arguments[1] : "";
  if (strcmp(end, "sleep") == 0) nanosleep(&(struct timespec){60, 0}, NULL);
  if (strcmp(end, "trap") == 0) abort();
  return atoi(end);
}
