/* A component that does what its path says, so that a test can ask for any good or bad behaviour.
 *
 *   /echo                        the request's body
 *   /headers                     method, URI and headers, a line each
 *   /status?code=N  /no-body  /header-dup  /big?bytes=N
 *   /stdout?text=T  /stderr?text=T  /env?name=X  /clock  /random  /connect
 *   /file?path=P                 the file's contents; 404 and the reason
 *   /write?path=P                tries to create P: "created" or the reason
 *   /sleep?ms=N                  waits in poll_oneoff
 *   /loop  /recurse  /trap  /abort  /exit?code=N
 *   /alloc?mb=N                  takes and touches N MiB; 507 when it cannot
 *   /alloc-forever               takes memory until there is none, then aborts
 *   /bad-body-pointer  /bad-header-count  /bad-tag
 *   /bad-utf8-header  /bad-header-name  /bad-header-value
 *
 * The path is what follows the component's route; values are percent-decoded.
 */
#include "spin.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

enum { MIB = 1 << 20, PAGE = 65536 };

static char *query; /* Of the request at hand, never NULL. */

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The decoded value of one field of the query, "" if it is not there. */
static char *field(const char *name) {
  size_t name_size = strlen(name);
  const char *at = query;
  while (at != NULL && !(strncmp(at, name, name_size) == 0 && at[name_size] == '=')) {
    at = strchr(at, '&');
    if (at != NULL) at++;
  }
  if (at == NULL) return "";
  at += name_size + 1;
  char *value = malloc(strlen(at) + 1), *end = value;
  if (value == NULL) abort();
  while (*at != '\0' && *at != '&') {
    if (*at == '%' && hex_digit(at[1]) >= 0 && hex_digit(at[2]) >= 0) {
      *end++ = (char)(hex_digit(at[1]) << 4 | hex_digit(at[2]));
      at += 3;
    } else {
      *end++ = *at++;
    }
  }
  *end = '\0';
  return value;
}

static long number(const char *name) { return strtol(field(name), NULL, 10); }

__attribute__((format(printf, 3, 4)))
static void answer(struct spin_response *response, int status, const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  spin_answer(response, status, text);
}

static void echo(const struct spin_request *request, struct spin_response *response) {
  const char *type = spin_request_header(request, "content-type");
  spin_add_header(response, "content-type", type != NULL ? type : "application/octet-stream");
  spin_set_body(response, request->body.data, request->body.size);
}

static void show_request(const struct spin_request *request, struct spin_response *response) {
  static const char *const methods[] = {"GET",   "POST", "PUT",    "DELETE",
                                        "PATCH", "HEAD", "OPTIONS"};
  size_t size = request->uri.size + 16;
  for (size_t i = 0; i < request->header_count; i++)
    size += request->headers[i].name.size + request->headers[i].value.size + 3;
  char *text = malloc(size), *end = text;
  if (text == NULL) abort();
  end = stpcpy(end, request->method <= SPIN_OPTIONS ? methods[request->method] : "?");
  end = stpcpy(stpcpy(stpcpy(end, " "), request->uri.data), "\n");
  for (size_t i = 0; i < request->header_count; i++) {
    end = stpcpy(stpcpy(end, request->headers[i].name.data), ": ");
    end = stpcpy(stpcpy(end, request->headers[i].value.data), "\n");
  }
  spin_answer(response, 200, text);
}

static void show_file(struct spin_response *response, const char *path) {
  FILE *file = fopen(path, "r");
  if (file == NULL) {
    answer(response, 404, "%s: %s\n", path, strerror(errno));
    return;
  }
  size_t size = 0, room = 4096, got;
  char *content = malloc(room);
  while (content != NULL && (got = fread(content + size, 1, room - size, file)) > 0) {
    size += got;
    if (size == room) content = realloc(content, room *= 2);
  }
  if (content == NULL) abort();
  if (ferror(file)) {
    answer(response, 500, "%s: %s\n", path, strerror(errno));
    return;
  }
  spin_set_body(response, content, size);
}

static void write_file(struct spin_response *response, const char *path) {
  int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (file < 0 || write(file, "probe\n", 6) != 6)
    answer(response, 403, "%s: %s\n", path, strerror(errno));
  else
    answer(response, 201, "created\n");
}

static bool take(size_t bytes) {
  volatile char *block = malloc(bytes);
  if (block == NULL) return false;
  for (size_t i = 0; i < bytes; i += PAGE) block[i] = 1;
  return true;
}

static void allocate(struct spin_response *response, long mebibytes) {
  for (long i = 0; i < mebibytes; i++) {
    if (!take(MIB)) {
      answer(response, 507, "%ld\n", i);
      return;
    }
  }
  answer(response, 200, "%ld\n", mebibytes);
}

static void big_body(struct spin_response *response, size_t size) {
  char *content = malloc(size);
  if (content == NULL) {
    answer(response, 507, "no room for %zu bytes\n", size);
    return;
  }
  memset(content, 'x', size);
  response->body.present = true;
  response->body.content = (struct spin_string){content, size};
}

static void show_clock(struct spin_response *response) {
  struct timespec real, monotonic;
  if (clock_gettime(CLOCK_REALTIME, &real) != 0 ||
      clock_gettime(CLOCK_MONOTONIC, &monotonic) != 0)
    abort();
  answer(response, 200, "realtime %lld.%09ld\nmonotonic %lld.%09ld\n", (long long)real.tv_sec,
         real.tv_nsec, (long long)monotonic.tv_sec, monotonic.tv_nsec);
}

static void show_random(struct spin_response *response) {
  unsigned char bytes[16];
  char text[2 * sizeof bytes + 2];
  if (getentropy(bytes, sizeof bytes) != 0) abort();
  for (size_t i = 0; i < sizeof bytes; i++) sprintf(text + 2 * i, "%02x", bytes[i]);
  answer(response, 200, "%s\n", text);
}

/* Preview 1 can only use sockets that the host opened: every descriptor is tried for one. */
static void find_sockets(struct spin_response *response) {
  for (__wasi_fd_t fd = 0; fd < 16; fd++) {
    __wasi_ciovec_t nothing = {(const uint8_t *)"", 0};
    __wasi_size_t sent;
    if (__wasi_sock_send(fd, &nothing, 1, 0, &sent) == __WASI_ERRNO_SUCCESS) {
      answer(response, 200, "descriptor %u is a socket\n", (unsigned)fd);
      return;
    }
  }
  answer(response, 200, "none\n");
}

__attribute__((noinline)) static int recurse(volatile int *caller) {
  volatile int here = *caller + 1;
  return here < 0 ? 0 : recurse(&here) + here; /* never below 0 before the stack ends */
}

static void misbehave(const char *path, struct spin_response *response) {
  if (strcmp(path, "/bad-body-pointer") == 0) {
    response->body.present = true;
    response->body.content = (struct spin_string){(char *)0xfffffff0, 4096};
  } else if (strcmp(path, "/bad-header-count") == 0) {
    spin_add_header(response, "x-first", "1");
    response->headers.count = 0x10000001; /* times 16 is 16 in 32 bits */
  } else if (strcmp(path, "/bad-tag") == 0) {
    memset(&response->body.present, 7, 1);
  } else if (strcmp(path, "/bad-utf8-header") == 0) {
    spin_add_header(response, "x-bad", "\xff\xfe");
  } else if (strcmp(path, "/bad-header-name") == 0) {
    spin_add_header(response, "x bad\r\nx-injected", "1");
  } else if (strcmp(path, "/bad-header-value") == 0) {
    spin_add_header(response, "x-bad", "1\r\nx-injected: 2");
  } else {
    answer(response, 404, "no such probe: %s\n", path);
  }
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  char *path = spin_copy(request->uri.data, request->uri.size).data;
  query = strchr(path, '?');
  if (query != NULL)
    *query++ = '\0';
  else
    query = "";
  const char *path_info = spin_request_header(request, "spin-path-info");
  if (path_info != NULL) path = (char *)path_info;

  if (strcmp(path, "/echo") == 0) {
    echo(request, response);
  } else if (strcmp(path, "/headers") == 0) {
    show_request(request, response);
  } else if (strcmp(path, "/status") == 0) {
    response->status = (uint16_t)number("code");
  } else if (strcmp(path, "/no-body") == 0) {
    response->headers.present = false;
  } else if (strcmp(path, "/header-dup") == 0) {
    spin_add_header(response, "x-dup", "first");
    spin_add_header(response, "x-dup", "last");
  } else if (strcmp(path, "/big") == 0) {
    big_body(response, (size_t)number("bytes"));
  } else if (strcmp(path, "/stdout") == 0) {
    puts(field("text"));
  } else if (strcmp(path, "/stderr") == 0) {
    fprintf(stderr, "%s\n", field("text"));
  } else if (strcmp(path, "/env") == 0) {
    const char *value = getenv(field("name"));
    spin_answer(response, value != NULL ? 200 : 404, value != NULL ? value : "");
  } else if (strcmp(path, "/clock") == 0) {
    show_clock(response);
  } else if (strcmp(path, "/random") == 0) {
    show_random(response);
  } else if (strcmp(path, "/connect") == 0) {
    find_sockets(response);
  } else if (strcmp(path, "/file") == 0) {
    show_file(response, field("path"));
  } else if (strcmp(path, "/write") == 0) {
    write_file(response, field("path"));
  } else if (strcmp(path, "/sleep") == 0) {
    usleep((useconds_t)number("ms") * 1000);
    answer(response, 200, "%ld\n", number("ms"));
  } else if (strcmp(path, "/loop") == 0) {
    for (volatile unsigned turns = 0;;) turns++;
  } else if (strcmp(path, "/recurse") == 0) {
    int depth = 0;
    answer(response, 200, "%d\n", recurse(&depth));
  } else if (strcmp(path, "/trap") == 0) {
    __builtin_trap();
  } else if (strcmp(path, "/abort") == 0) {
    abort();
  } else if (strcmp(path, "/exit") == 0) {
    exit((int)number("code"));
  } else if (strcmp(path, "/alloc") == 0) {
    allocate(response, number("mb"));
  } else if (strcmp(path, "/alloc-forever") == 0) {
    while (take(MIB)) continue;
    abort();
  } else {
    misbehave(path, response);
  }
}
