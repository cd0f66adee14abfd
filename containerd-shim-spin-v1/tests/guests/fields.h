/* What guests share that run statements of databases: lines of a request's body, whose fields are
 * separated by tabs, and values to be shown.
 *
 * A field kind:value is a parameter; its value may be @100, see lines.h.
 */
#ifndef FIELDS_H
#define FIELDS_H

#include "lines.h"

enum { MAX_FIELDS = 32 };

struct fields {
  char *items[MAX_FIELDS];
  size_t count;
};

/* Takes the line that begins at *rest, which then is the next; false at the end. */
static inline bool next_fields(char **rest, struct fields *fields) {
  fields->count = 0;
  if (*rest == NULL || **rest == '\0') return false;
  char *line = strsep(rest, "\n");
  while (line != NULL) {
    if (fields->count == MAX_FIELDS) abort();
    fields->items[fields->count++] = strsep(&line, "\t");
  }
  return true;
}

/* Splits kind:value; returns the place of the kind in these names, which end with NULL. */
static inline uint8_t kind_of(char *field, const char *const *names, struct spin_string *value) {
  char *text = field;
  const char *kind = strsep(&text, ":");
  *value = text == NULL ? (struct spin_string){field, 0} : word_of(text, strlen(text));
  for (uint8_t i = 0; names[i] != NULL; i++)
    if (strcmp(names[i], kind) == 0) return i;
  abort();
}

static inline double host_f64(const void *at) {
  double value;
  memcpy(&value, at, sizeof value);
  return value;
}

static inline float host_f32(const void *at) {
  float value;
  memcpy(&value, at, sizeof value);
  return value;
}

/* Few bytes are shown in hexadecimal. */
static inline void say_bytes(struct spin_response *response, struct spin_string bytes) {
  if (bytes.size > SHOWN) {
    say_text(response, bytes);
    return;
  }
  host_say(response, "x");
  for (size_t i = 0; i < bytes.size; i++) host_say(response, "%02x", (uint8_t)bytes.data[i]);
}

#endif
