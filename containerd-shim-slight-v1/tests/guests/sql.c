/* Runs the statement in the body. Its parameters are in headers x-p, in their order. */
#include <stdio.h>

#include "slight.h"

struct item {
  struct slight_string name;
  uint8_t kind;
  union {
    int32_t int32;
    int64_t int64;
    double number;
    struct slight_string text;
    bool boolean;
  };
};
_Static_assert(sizeof(struct item) == 24 && offsetof(struct item, int32) == 16, "the ABI's row-item");

SLIGHT_IMPORT("sql", "sql::open")
void sql_open(SLIGHT_TEXT, struct slight_result *);
SLIGHT_IMPORT("sql", "sql::query")
void sql_query(uint32_t, uint32_t, struct slight_result *);
SLIGHT_IMPORT("sql", "sql::exec")
void sql_exec(uint32_t, uint32_t, struct slight_result *);
SLIGHT_IMPORT("sql", "statement::prepare")
uint32_t statement_prepare(SLIGHT_TEXT, const struct slight_string *, size_t);
SLIGHT_IMPORT("canonical_abi", "resource_drop_sql")
void sql_drop(uint32_t);
SLIGHT_IMPORT("canonical_abi", "resource_drop_statement")
void statement_drop(uint32_t);

const char *slight_init(void) {
  struct slight_result result;
  slight_router_new_(&result);
  SLIGHT_ROUTE(&result, put, "/:call", "call");
  if (!result.is_error) slight_serve_(SLIGHT_STRING("127.0.0.1:0"), result.handle, &result);
  return result.is_error ? result.error.text.data : NULL;
}

static int print(char *at, size_t room, const struct item *item) {
  static const char *const kinds[] = {"int32", "int64", "uint32", "uint64", "float",
                                      "double", "str", "boolean", "date", "time",
                                      "timestamp", "binary", "null"};
  int size = snprintf(at, room, "%s %s ", item->name.data, kinds[item->kind]);
  at += size, room -= (size_t)size;
  if (item->kind == 0) return size + snprintf(at, room, "%d\n", item->int32);
  if (item->kind == 1) return size + snprintf(at, room, "%lld\n", item->int64);
  if (item->kind == 4 || item->kind == 5) return size + snprintf(at, room, "%g\n", item->number);
  if (item->kind == 7) return size + snprintf(at, room, "%d\n", item->boolean);
  if (item->kind == 12) return size + snprintf(at, room, "\n");
  return size + snprintf(at, room, "%s\n", item->text.data);
}

SLIGHT_HANDLER("call", call) {
  static char buffer[1 << 16];
  static struct slight_string params[100];
  size_t count = 0, size = 0;
  struct slight_result result;
  for (size_t i = 0; i < request->headers.count && count < 100; i++)
    if (strcmp(request->headers.items[i].name.data, "x-p") == 0)
      params[count++] = request->headers.items[i].value;
  bool query = strcmp(slight_param(request, "call"), "query") == 0;
  sql_open(SLIGHT_STRING("db"), &result);
  if (!result.is_error) {
    uint32_t handle = result.handle;
    uint32_t statement = statement_prepare(request->body.data, request->body.size, params, count);
    if (query)
      sql_query(handle, statement, &result);
    else
      sql_exec(handle, statement, &result);
    statement_drop(statement);
    sql_drop(handle);
  }
  if (result.is_error) {
    snprintf(buffer, sizeof buffer, "%d %s", result.error.code, result.error.text.data);
    slight_answer(response, 418, buffer, strlen(buffer));
  } else if (query) {
    const struct item *items = (const struct item *)result.content.data;
    for (size_t i = 0; i < result.content.size; i++)
      size += (size_t)print(buffer + size, sizeof buffer - size, &items[i]);
    slight_answer(response, 200, buffer, size);
  } else {
    response->status = 204;
  }
}
