/* Hello world for Spin 1.x in C, and one file that the manifest gives the component.
 *
 *   /c-hello         the greeting
 *   /c-hello/about   the file /about.txt
 */
#include "spin.h"

#include <fcntl.h>
#include <unistd.h>

static void send_file(struct spin_response *response, const char *path) {
  char text[4096];
  int file = open(path, O_RDONLY);
  ssize_t size = file < 0 ? -1 : read(file, text, sizeof text - 1);
  if (size < 0) {
    spin_answer(response, 404, "no such file\n");
    return;
  }
  text[size] = '\0';
  spin_answer(response, 200, text);
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  /* What follows the component's route: "" for /c-hello itself. */
  const char *path = spin_request_header(request, "spin-path-info");

  if (path == NULL || *path == '\0' || strcmp(path, "/") == 0)
    spin_answer(response, 200, "Hello world from C!");
  else if (strcmp(path, "/about") == 0)
    send_file(response, "/about.txt");
  else
    spin_answer(response, 404, "not found\n");
}
