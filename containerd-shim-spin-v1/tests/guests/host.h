/* What guests of the tests share that call host interfaces: imports, and values in result areas.
 *
 * An import is declared with the flat arguments of the ABI: a string or list is a pointer and a
 * length, the last argument is where the result goes. A result's first byte is 0 for ok.
 */
#ifndef HOST_H
#define HOST_H

#include <stdarg.h>
#include <stdio.h>

#include "spin.h"

#define HOST_IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

/* A result area: larger than any, and aligned for 64-bit values. */
union host_result {
  uint8_t bytes[64];
  uint64_t words[8];
};

static inline uint32_t host_u32(const void *at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

static inline int64_t host_s64(const void *at) {
  int64_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

/* A string or list<u8> whose pointer and length are at this place; no NUL need follow. */
static inline struct spin_string host_string(const void *at) {
  return (struct spin_string){(char *)(uintptr_t)host_u32(at), host_u32((const char *)at + 4)};
}

/* Adds to the response's body, as printf. */
__attribute__((format(printf, 2, 3))) static inline void host_say(struct spin_response *response,
                                                                  const char *format, ...) {
  char *text;
  va_list arguments;
  va_start(arguments, format);
  int size = vasprintf(&text, format, arguments);
  va_end(arguments);
  if (size < 0) abort();
  struct spin_string *body = &response->body.content;
  body->data = realloc(body->data, body->size + (size_t)size);
  memcpy(body->data + body->size, text, (size_t)size);
  body->size += (size_t)size;
  response->body.present = true;
  free(text);
}

#define HOST_TEXT(string) (int)(string).size, (string).data /* for %.*s */

#endif
