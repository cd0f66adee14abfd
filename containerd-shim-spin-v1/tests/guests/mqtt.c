/* Publishes the request's body, as its headers say: address, username, password, keep-alive, topic,
 * qos (a number). The path is what else is done:
 *
 *   /publish   opens a connection and publishes; x-times says how often
 *   /dropped   publishes by a connection that it has dropped
 *   /open      opens connections until that fails, and says how many there were
 */
#include "host.h"

HOST_IMPORT("fermyon:spin/mqtt@2.0.0", "[static]connection.open")
void mqtt_open(const char *address, size_t address_size, const char *username,
               size_t username_size, const char *password, size_t password_size,
               uint64_t keep_alive_seconds, union host_result *result);
HOST_IMPORT("fermyon:spin/mqtt@2.0.0", "[method]connection.publish")
void mqtt_publish(uint32_t connection, const char *topic, size_t topic_size, const void *payload,
                  size_t payload_size, uint32_t qos, union host_result *result);
HOST_IMPORT("fermyon:spin/mqtt@2.0.0", "[resource-drop]connection")
void mqtt_drop(uint32_t connection);

SPIN_EXPORT("cabi_realloc")
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t new_size) {
  return spin_realloc(old, old_size, align, new_size);
}

static const char *field(const struct spin_request *request, const char *name) {
  const char *value = spin_request_header(request, name);
  return value == NULL ? "" : value;
}

/* An error: its case at 4, a string at 8 if it has one. Returns whether there is none. */
static bool succeeded(const char *what, const union host_result *result,
                      struct spin_response *response) {
  if (result->bytes[0] == 0) return true;
  host_say(response, "%s: error %d", what, result->bytes[4]);
  if (result->bytes[4] >= 2) {
    struct spin_string reason = host_string(result->bytes + 8);
    host_say(response, " %.*s", HOST_TEXT(reason));
  }
  return false;
}

static bool open_connection(const struct spin_request *request, struct spin_response *response,
                            uint32_t *connection) {
  const char *address = field(request, "address"), *username = field(request, "username"),
             *password = field(request, "password");
  union host_result result;
  mqtt_open(address, strlen(address), username, strlen(username), password, strlen(password),
            strtoull(field(request, "keep-alive"), NULL, 10), &result);
  *connection = host_u32(result.bytes + 4);
  return succeeded("open", &result, response);
}

static bool publish(const struct spin_request *request, struct spin_response *response,
                    uint32_t connection) {
  const char *topic = field(request, "topic");
  union host_result result;
  mqtt_publish(connection, topic, strlen(topic), request->body.data, request->body.size,
               (uint32_t)atoi(field(request, "qos")), &result);
  return succeeded("publish", &result, response);
}

void spin_handle(const struct spin_request *request, struct spin_response *response) {
  uint32_t connection;
  if (strcmp(request->uri.data, "/open") == 0) {
    int count = 0;
    while (open_connection(request, response, &connection)) count++;
    host_say(response, " after %d", count);
    return;
  }
  if (!open_connection(request, response, &connection)) return;
  if (strcmp(request->uri.data, "/dropped") == 0) {
    mqtt_drop(connection);
    publish(request, response, connection);
    return;
  }
  int times = atoi(field(request, "x-times"));
  do {
    if (!publish(request, response, connection)) return;
  } while (--times > 0);
  mqtt_drop(connection);
  host_say(response, "ok");
}
