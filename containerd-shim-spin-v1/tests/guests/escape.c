/* A component that tries to get out: at files that are not its own, at descriptors, sockets,
 * signals and devices. The answer has a line for each attempt, "what: how it ended".
 *
 * It is given the directory /volume, which others may write to. What it tries to reach is there in
 * the container: /spin.toml and /proc. The lines of the request's body are paths that it tries to
 * read, too.
 *
 *   /            every attempt
 *   /environment each variable on a line
 *   /read?P      the contents of /volume/P, or the reason
 */
#include "spin.h"

#include <errno.h>
#include <stdio.h>
#include <wasi/api.h>

enum { DESCRIPTORS = 4096, ROOM = 1 << 18, SIGNAL_KILL = 9 };
#define ALL_RIGHTS ((__WASI_RIGHTS_SOCK_ACCEPT << 1) - 1) /* bits beyond the last trap */
#define READ (__WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_READDIR | __WASI_RIGHTS_PATH_OPEN)
#define UP "../../../../../../../../../../../../.."

extern char **environ;

/* With the length of the path, so that a NUL can be in it; the C library takes what ends there. */
__attribute__((import_module("wasi_snapshot_preview1"), import_name("path_open")))
int path_open(int fd, int lookup, const char *path, size_t size, int open_flags, uint64_t rights,
              uint64_t inherited, int fd_flags, __wasi_fd_t *opened);
__attribute__((import_module("wasi_snapshot_preview1"), import_name("proc_raise")))
int proc_raise(int number);

static char *answer;
static size_t used;
static __wasi_fd_t volume, first_free;

static void report(const char *what, int error) {
  if (used < ROOM) {
    const char *how = error == 0 ? "success" : strerror(error);
    used += (size_t)snprintf(answer + used, ROOM - used, "%s: %s\n", what, how);
  }
}

static void find_preopened(void) {
  char name[256];
  __wasi_prestat_t stat;
  volume = -1;
  for (first_free = 3; __wasi_fd_prestat_get(first_free, &stat) == 0; first_free++) {
    size_t size = stat.u.dir.pr_name_len;
    if (size >= sizeof name ||
        __wasi_fd_prestat_dir_name(first_free, (uint8_t *)name, size) != 0)
      continue;
    name[size] = '\0';
    if (strcmp(name, "/volume") == 0) volume = first_free;
  }
  if (volume < 0) abort();
}

static int open_sized(const char *path, size_t size, int open_flags, uint64_t rights,
                      int fd_flags, __wasi_fd_t *opened) {
  return path_open(volume, __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW, path, size, open_flags, rights,
                   rights, fd_flags, opened);
}

/* Open and read a byte, or an entry of a directory. */
static int read_from(const char *path, size_t size) {
  __wasi_fd_t fd;
  uint8_t byte[64];
  __wasi_iovec_t vector = {byte, sizeof byte};
  __wasi_size_t got;
  int error = open_sized(path, size, 0, READ, 0, &fd);
  if (error == 0) {
    error = __wasi_fd_read(fd, &vector, 1, &got);
    if (error == EISDIR || error == EBADF)
      error = __wasi_fd_readdir(fd, byte, sizeof byte, 0, &got);
    if (__wasi_fd_close(fd) != 0) abort();
  }
  return error;
}

static void try_read(const char *path) {
  char what[4200];
  snprintf(what, sizeof what, "read %s", path);
  report(what, read_from(path, strlen(path)));
}

static void try_absolute(const char *path) {
  char longer[4200];
  try_read(path);
  snprintf(longer, sizeof longer, UP "%s", path);
  try_read(longer);
}

static void read_outside(const struct spin_request *request) {
  static const char *const paths[] = {
      "file", "..", "../", "./..", "directory/../..", "../volume/file/../..", "/", "/volume/file",
      UP "/spin.toml", "link-absolute", "link-up", "link-chain", "link-directory/environ",
      "link-proc", "link-self", "link-loop", "directory/link-up", "disk", "memory", "kmsg", "tty",
      "socket",
  };
  for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) try_read(paths[i]);
  report("read a path with a NUL", read_from("file\0/../../spin.toml", 20));
  report("read a path that is not UTF-8", read_from("\xff\xfe/..", 5));
  char *body = strdup(request->body.data);
  for (char *path = strtok(body, "\n"); path != NULL; path = strtok(NULL, "\n"))
    try_absolute(path);
}

static void try_write(const char *what, const char *path, int open_flags, int fd_flags) {
  __wasi_fd_t fd;
  __wasi_ciovec_t vector = {(const uint8_t *)"x", 1};
  __wasi_size_t wrote;
  int error = open_sized(path, strlen(path), open_flags, ALL_RIGHTS, fd_flags, &fd);
  if (error == 0) error = __wasi_fd_write(fd, &vector, 1, &wrote);
  report(what, error);
}

static void change_files(void) {
  const int creat = __WASI_OFLAGS_CREAT, trunc = __WASI_OFLAGS_TRUNC;
  try_write("write with every right", "file", 0, 0);
  try_write("append", "file", 0, __WASI_FDFLAGS_APPEND);
  try_write("truncate", "file", trunc, 0);
  try_write("create", "made", creat, 0);
  try_write("create above", "../made", creat, 0);
  try_write("create behind a link", "link-directory/made", creat, 0);
  try_write("create through a dangling link", "link-dangling", creat, 0);
  report("mkdir", __wasi_path_create_directory(volume, "made"));
  report("mkdir above", __wasi_path_create_directory(volume, "../made"));
  report("link into", __wasi_path_link(volume, 0, UP "/spin.toml", volume, "made"));
  report("link out", __wasi_path_link(volume, 0, "file", volume, UP "/tmp/made"));
  report("link", __wasi_path_link(volume, 0, "file", volume, "made"));
  report("symlink to root", __wasi_path_symlink("/", volume, "made"));
  report("symlink up", __wasi_path_symlink("../..", volume, "made"));
  report("symlink out", __wasi_path_symlink("file", volume, "../made"));
  report("rename", __wasi_path_rename(volume, "file", volume, "made"));
  report("rename out", __wasi_path_rename(volume, "file", volume, "../made"));
  report("rename into", __wasi_path_rename(volume, UP "/spin.toml", volume, "made"));
  report("unlink", __wasi_path_unlink_file(volume, "file"));
  report("unlink above", __wasi_path_unlink_file(volume, "../volume/file"));
  report("rmdir", __wasi_path_remove_directory(volume, "directory"));
  report("set times", __wasi_path_filestat_set_times(volume, 0, "file", 0, 0,
                                                      __WASI_FSTFLAGS_MTIM_NOW));
}

static void change_descriptors(void) {
  __wasi_fd_t file;
  if (open_sized("file", 4, 0, READ, 0, &file) != 0) abort();
  report("set size", __wasi_fd_filestat_set_size(file, 0));
  report("allocate", __wasi_fd_allocate(file, 0, 4096));
  report("set times of a descriptor",
         __wasi_fd_filestat_set_times(file, 0, 0, __WASI_FSTFLAGS_MTIM_NOW));
  report("take more rights of a file", __wasi_fd_fdstat_set_rights(file, ALL_RIGHTS, ALL_RIGHTS));
  report("take more rights of a directory",
         __wasi_fd_fdstat_set_rights(volume, ALL_RIGHTS, ALL_RIGHTS));
  try_write("write with more rights", "file", 0, 0);
  if (__wasi_fd_close(file) != 0) abort();
}

/* ---- Descriptors that are not the guest's ---- */

static uint8_t space[64];
static __wasi_iovec_t into = {space, sizeof space};
static __wasi_ciovec_t from = {space, 1};
static __wasi_size_t count;

static int foreign_read(__wasi_fd_t fd) { return __wasi_fd_read(fd, &into, 1, &count); }
static int foreign_pread(__wasi_fd_t fd) { return __wasi_fd_pread(fd, &into, 1, 0, &count); }
static int foreign_write(__wasi_fd_t fd) { return __wasi_fd_write(fd, &from, 1, &count); }
static int foreign_close(__wasi_fd_t fd) { return __wasi_fd_close(fd); }
static int foreign_renumber(__wasi_fd_t fd) { return __wasi_fd_renumber(fd, volume); }
static int foreign_stat(__wasi_fd_t fd) {
  __wasi_filestat_t stat;
  return __wasi_fd_filestat_get(fd, &stat);
}
static int foreign_fdstat(__wasi_fd_t fd) {
  __wasi_fdstat_t stat;
  return __wasi_fd_fdstat_get(fd, &stat);
}
static int foreign_prestat(__wasi_fd_t fd) {
  __wasi_prestat_t stat;
  return __wasi_fd_prestat_get(fd, &stat);
}
static int foreign_readdir(__wasi_fd_t fd) {
  return __wasi_fd_readdir(fd, space, sizeof space, 0, &count);
}
static int foreign_open(__wasi_fd_t fd) {
  __wasi_fd_t opened;
  return path_open(fd, 0, ".", 1, 0, READ, READ, 0, &opened);
}
static int socket_accept(__wasi_fd_t fd) {
  __wasi_fd_t accepted;
  return __wasi_sock_accept(fd, 0, &accepted);
}
static int socket_receive(__wasi_fd_t fd) {
  __wasi_roflags_t flags;
  return __wasi_sock_recv(fd, &into, 1, 0, &count, &flags);
}
static int socket_send(__wasi_fd_t fd) { return __wasi_sock_send(fd, &from, 1, 0, &count); }
static int socket_shutdown(__wasi_fd_t fd) {
  return __wasi_sock_shutdown(fd, __WASI_SDFLAGS_RD | __WASI_SDFLAGS_WR);
}

/* Report the last error, or the first descriptor for which there is none. */
static void try_descriptors(const char *what, int (*attempt)(__wasi_fd_t), __wasi_fd_t first) {
  char found[64];
  int error = 0;
  for (__wasi_fd_t fd = first; fd < DESCRIPTORS; fd++) {
    if ((error = attempt(fd)) == 0) {
      snprintf(found, sizeof found, "%s on %d", what, fd);
      report(found, 0);
      return;
    }
  }
  if (attempt(INT32_MAX) == 0 || attempt(-1) == 0) error = 0;
  report(what, error);
}

static void use_descriptors(void) {
  static const struct {
    const char *what;
    int (*attempt)(__wasi_fd_t);
  } foreign[] = {
      {"foreign read", foreign_read},         {"foreign pread", foreign_pread},
      {"foreign write", foreign_write},       {"foreign stat", foreign_stat},
      {"foreign fdstat", foreign_fdstat},     {"foreign prestat", foreign_prestat},
      {"foreign readdir", foreign_readdir},   {"foreign open", foreign_open},
      {"foreign renumber", foreign_renumber}, {"foreign close", foreign_close},
  }, sockets[] = {
      {"socket accept", socket_accept},
      {"socket receive", socket_receive},
      {"socket send", socket_send},
      {"socket shutdown", socket_shutdown},
  };
  for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
    try_descriptors(foreign[i].what, foreign[i].attempt, first_free);
  for (size_t i = 0; i < sizeof sockets / sizeof *sockets; i++)
    try_descriptors(sockets[i].what, sockets[i].attempt, 0);
}

/* Whatever poll says of a descriptor that is not there, it gives no bytes of it. */
static void poll_foreign(void) {
  __wasi_subscription_t wanted = {.u = {.tag = __WASI_EVENTTYPE_FD_READ}};
  __wasi_event_t event;
  __wasi_size_t events;
  wanted.u.u.fd_read.file_descriptor = first_free + 2;
  int error = __wasi_poll_oneoff(&wanted, &event, 1, &events);
  if (error == 0) error = event.error != 0 ? event.error : EBADF;
  report(event.fd_readwrite.nbytes != 0 ? "poll foreign, bytes" : "poll foreign", error);
}

/* What a file takes the number of the directory for: paths that start there lead nowhere. */
static void replace_preopened(void) {
  __wasi_fd_t file;
  if (open_sized("file", 4, 0, READ, 0, &file) != 0) abort();
  int refused = __wasi_fd_renumber(file, volume);
  report("read after the preopened one was replaced",
         refused != 0 ? refused : read_from(UP "/spin.toml", sizeof UP "/spin.toml" - 1));
}

static void escape(const struct spin_request *request, struct spin_response *response) {
  if ((answer = malloc(ROOM)) == NULL) abort();
  used = 0;
  find_preopened();
  read_outside(request);
  change_files();
  change_descriptors();
  use_descriptors();
  poll_foreign();
  report("raise SIGKILL", proc_raise(SIGNAL_KILL));
  replace_preopened();
  spin_answer(response, 200, answer);
}

static void show_environment(struct spin_response *response) {
  size_t size = 1;
  for (char **entry = environ; *entry != NULL; entry++) size += strlen(*entry) + 1;
  char *text = calloc(1, size);
  if (text == NULL) abort();
  for (char **entry = environ; *entry != NULL; entry++) strcat(strcat(text, *entry), "\n");
  spin_answer(response, 200, text);
}

static void show_file(struct spin_response *response, const char *name) {
  char path[256], text[256] = "";
  snprintf(path, sizeof path, "/volume/%s", name);
  FILE *file = fopen(path, "r");
  if (file == NULL) {
    spin_answer(response, 403, strerror(errno));
    return;
  }
  size_t got = fread(text, 1, sizeof text - 1, file);
  text[got] = '\0';
  spin_answer(response, ferror(file) ? 403 : 200, ferror(file) ? strerror(errno) : text);
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  char *path = spin_copy(request->uri.data, request->uri.size).data;
  char *query = strchr(path, '?');
  if (query != NULL) *query++ = '\0';
  if (strcmp(path, "/environment") == 0)
    show_environment(response);
  else if (strcmp(path, "/read") == 0)
    show_file(response, query != NULL ? query : "");
  else
    escape(request, response);
}
