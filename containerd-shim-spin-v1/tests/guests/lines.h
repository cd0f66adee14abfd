/* What guests share that do what the lines of a request's body say: words, separated by spaces.
 *
 * A word @100 is a value of 100 bytes, the letters from a to z again and again. Longer texts are
 * answered as their length and a sum of their bytes, each times its place from 1 on.
 */
#ifndef LINES_H
#define LINES_H

#include "host.h"

enum { MAX_WORDS = 16, SHOWN = 200 };

struct words {
  struct spin_string items[MAX_WORDS];
  size_t count;
};

static inline struct spin_string word_of(char *text, size_t size) {
  if (size == 0 || text[0] != '@') return (struct spin_string){text, size};
  size_t length = strtoull(text + 1, NULL, 10);
  char *data = malloc(length);
  if (data == NULL) abort();
  for (size_t i = 0; i < length; i++) data[i] = (char)('a' + i % 26);
  return (struct spin_string){data, length};
}

/* Takes the line that begins at *rest, which then is the next; false at the end. An empty word may
 * stand at a line's end only. */
static inline bool next_line(char **rest, struct words *words) {
  words->count = 0;
  if (**rest == '\0') return false;
  char *at = *rest;
  for (;;) {
    size_t size = strcspn(at, " \n");
    if (words->count == MAX_WORDS) abort();
    words->items[words->count++] = word_of(at, size);
    at += size;
    if (*at != ' ') break;
    at++;
  }
  *rest = *at == '\n' ? at + 1 : at;
  return true;
}

static inline bool is_word(struct spin_string word, const char *text) {
  return word.size == strlen(text) && memcmp(word.data, text, word.size) == 0;
}

static inline void say_text(struct spin_response *response, struct spin_string text) {
  if (text.size <= SHOWN) {
    host_say(response, "'%.*s'", HOST_TEXT(text));
    return;
  }
  uint64_t sum = 0;
  for (size_t i = 0; i < text.size; i++) sum += (uint8_t)text.data[i] * (uint64_t)(i + 1);
  host_say(response, "%zu bytes, sum %llu", text.size, (unsigned long long)sum);
}

/* Strings of a list whose pointer and length are at this place. */
static inline void say_texts(struct spin_response *response, const void *at) {
  struct spin_string list = host_string(at);
  for (size_t i = 0; i < list.size; i++) {
    if (i > 0) host_say(response, " ");
    say_text(response, host_string(list.data + 8 * i));
  }
}

#endif
