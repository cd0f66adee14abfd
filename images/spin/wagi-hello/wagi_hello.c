/* Hello world for Spin's WAGI executor: an ordinary command that speaks CGI.
 *
 * The request comes as environment variables, arguments (argv[0] is the path, then the query, split
 * at each "&") and standard input. Standard output is the response: headers, an empty line, the body.
 */
#include <stdio.h>
#include <stdlib.h>

static void show(const char *name) {
  const char *value = getenv(name);
  fputs(name, stdout);
  fputs("=", stdout);
  puts(value != NULL ? value : "");
}

int main(int argc, char **argv) {
  puts("content-type: text/plain\n");
  puts("Hello world from WAGI!");
  for (int i = 0; i < argc; i++) {
    fputs("argument: ", stdout);
    puts(argv[i]);
  }
  show("REQUEST_METHOD");
  show("PATH_INFO");
  show("QUERY_STRING");
  show("X_MATCHED_ROUTE");
  return 0;
}
