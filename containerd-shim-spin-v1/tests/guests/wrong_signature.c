/* The exports have the right names and the wrong types. */
__attribute__((export_name("canonical_abi_realloc"))) int reallocate(void) { return 0; }

__attribute__((export_name("canonical_abi_free"))) void release(void) {}

__attribute__((export_name("handle-http-request"))) long long handle(long long request) {
  return request;
}
