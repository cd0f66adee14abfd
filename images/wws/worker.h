/* What a worker in C needs: the request from standard input, the response to standard output.
 *
 * A request is JSON as the host writes it: no blanks between its parts, and of the escapes only
 * \" \\ \/ \b \f \n \r \t, and \u00XX for the other control characters.
 */
#ifndef WORKER_H
#define WORKER_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Returns all of standard input, NUL at its end. */
static inline char *worker_request(void) {
  size_t size = 0, room = 4096;
  char *text = malloc(room);
  while (text != NULL) {
    size += fread(text + size, 1, room - size - 1, stdin);
    if (size < room - 1) break;
    text = realloc(text, room *= 2);
  }
  if (text == NULL) abort();
  text[size] = '\0';
  return text;
}

/* Returns what follows the JSON string that begins at `at`. */
static inline const char *worker_skip_string(const char *at) {
  for (at++; *at != '"' && *at != '\0'; at++)
    if (*at == '\\' && at[1] != '\0') at++;
  return *at == '\0' ? at : at + 1;
}

/* Returns what follows the JSON value that begins at `at`. */
static inline const char *worker_skip(const char *at) {
  int depth = 0;
  while (*at != '\0') {
    if (depth == 0 && (*at == ',' || *at == '}' || *at == ']')) break;
    if (*at == '{' || *at == '[') depth++;
    if (*at == '}' || *at == ']') depth--;
    at = *at == '"' ? worker_skip_string(at) : at + 1;
  }
  return at;
}

/* Returns the value of a member of the JSON object at `object`, NULL if there is none. */
static inline const char *worker_member(const char *object, const char *name) {
  size_t size = strlen(name);
  const char *at = object + 1;
  while (*at == '"') {
    const char *end = worker_skip_string(at);
    if ((size_t)(end - at) == size + 2 && memcmp(at + 1, name, size) == 0) return end + 1;
    at = worker_skip(end + 1);
    if (*at == ',') at++;
  }
  return NULL;
}

/* Copies the string at `value` as it is meant into `text`; returns its size. */
static inline size_t worker_string(const char *value, char *text, size_t room) {
  size_t size = 0;
  if (value != NULL && *value == '"') {
    for (value++; *value != '"' && *value != '\0' && size + 1 < room; value++) {
      char c = *value;
      if (c == '\\') {
        c = *++value;
        if (c == 'n') c = '\n';
        if (c == 't') c = '\t';
        if (c == 'r') c = '\r';
        if (c == 'b') c = '\b';
        if (c == 'f') c = '\f';
        if (c == 'u') {
          char code[5] = {value[1], value[2], value[3], value[4], '\0'};
          c = (char)strtol(code, NULL, 16);
          value += 4;
        }
      }
      text[size++] = c;
    }
  }
  text[size] = '\0';
  return size;
}

/* Writes the inside of a JSON string. */
static inline void worker_put(const char *text, size_t size) {
  for (size_t i = 0; i < size; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c == '"' || c == '\\')
      printf("\\%c", c);
    else if (c < 0x20)
      printf("\\u%04x", c);
    else
      putchar(c);
  }
}

#endif
