/* A WAGI command that does what its query says: mode=M, and for some modes more fields. Without a
 * mode in the query it is that of the variable MODE.
 *
 *   normal            a good response, as without any mode
 *   echo              standard input
 *   raw               standard input, headers included
 *   env  args         one variable or argument on each line
 *   mirror            "- " and an argument on each line, the variables, an empty line, and
 *                     standard input
 *   big&bytes=N       a body of N bytes
 *   crlf              headers that end in CR LF
 *   duplicate         a header twice
 *   status            only the header "status: 418 I'm a teapot"
 *   location          only the header "location: /elsewhere"
 *   no-headers        a body without the headers it needs: content-type, status or location
 *   bad-status        "status: fine"
 *   bad-header        a line without a colon, and a value that is no UTF-8
 *   no-blank-line     headers that never end
 *   empty             no output at all
 *   exit&code=N       a good response, then exit code N
 *   stderr            a good response, and a line on standard error
 *   sleep&ms=N        waits in poll_oneoff before a good response
 *   trap  loop
 *
 * Its other entrypoint, run, says so whatever the query.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* The value of one field of the query as it stands, "" if it is not there. */
static const char *field(const char *name) {
  static char copy[256];
  const char *query = getenv("QUERY_STRING");
  size_t size = strlen(name);
  snprintf(copy, sizeof copy, "%s", query != NULL ? query : "");
  for (char *part = strtok(copy, "&"); part != NULL; part = strtok(NULL, "&"))
    if (strncmp(part, name, size) == 0 && part[size] == '=') return part + size + 1;
  return "";
}

static void copy_input(void) {
  char block[4096];
  size_t size;
  while ((size = fread(block, 1, sizeof block, stdin)) > 0) fwrite(block, 1, size, stdout);
}

static void put_lines(char **lines) {
  for (; *lines != NULL; lines++) puts(*lines);
}

__attribute__((export_name("run"))) void run(void) {
  puts("content-type: text/plain\n\nrun");
  fflush(stdout);
}

int main(int argc, char **argv) {
  char mode[32];
  (void)argc;
  snprintf(mode, sizeof mode, "%s", field("mode"));
  if (*mode == '\0' && getenv("MODE") != NULL) snprintf(mode, sizeof mode, "%s", getenv("MODE"));

  if (strcmp(mode, "echo") == 0) {
    puts("content-type: application/octet-stream\n");
    copy_input();
  } else if (strcmp(mode, "raw") == 0) {
    copy_input();
  } else if (strcmp(mode, "env") == 0) {
    puts("content-type: text/plain\n");
    put_lines(environ);
  } else if (strcmp(mode, "args") == 0) {
    puts("content-type: text/plain\n");
    put_lines(argv);
  } else if (strcmp(mode, "mirror") == 0) {
    puts("content-type: text/plain\n");
    for (char **argument = argv; *argument != NULL; argument++) printf("- %s\n", *argument);
    put_lines(environ);
    puts("");
    copy_input();
  } else if (strcmp(mode, "big") == 0) {
    puts("content-type: text/plain\n");
    for (long left = strtol(field("bytes"), NULL, 10); left > 0; left--) putchar('x');
  } else if (strcmp(mode, "crlf") == 0) {
    fputs("content-type: text/plain\r\nx-mode: crlf\r\n\r\nnormal\n", stdout);
  } else if (strcmp(mode, "duplicate") == 0) {
    fputs("content-type: text/plain\nx-dup: first\nx-dup: last\n\nnormal\n", stdout);
  } else if (strcmp(mode, "status") == 0) {
    fputs("status: 418 I'm a teapot\n\nshort and stout\n", stdout);
  } else if (strcmp(mode, "location") == 0) {
    fputs("location: /elsewhere\n\n", stdout);
  } else if (strcmp(mode, "no-headers") == 0) {
    fputs("\nno headers\n", stdout);
  } else if (strcmp(mode, "bad-status") == 0) {
    fputs("status: fine\n\nnormal\n", stdout);
  } else if (strcmp(mode, "bad-header") == 0) {
    fputs("content-type: text/plain\nno colon here\nx-bad: \xff\xfe\n\nnormal\n", stdout);
  } else if (strcmp(mode, "no-blank-line") == 0) {
    fputs("content-type: text/plain\n", stdout);
  } else if (strcmp(mode, "empty") == 0) {
    return 0;
  } else if (strcmp(mode, "trap") == 0) {
    __builtin_trap();
  } else if (strcmp(mode, "loop") == 0) {
    for (volatile unsigned turns = 0;;) turns++;
  } else {
    if (strcmp(mode, "stderr") == 0) fputs("a line on standard error\n", stderr);
    if (strcmp(mode, "sleep") == 0) usleep((useconds_t)strtol(field("ms"), NULL, 10) * 1000);
    puts("content-type: text/plain\n\nnormal");
    if (strcmp(mode, "exit") == 0) return (int)strtol(field("code"), NULL, 10);
  }
  return 0;
}
