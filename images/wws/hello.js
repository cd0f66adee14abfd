// Says hello: a worker in JavaScript is its source.
addEventListener("fetch", (event) => {
  const headers = { "content-type": "text/plain" };
  event.respondWith(new Response("hello world!", { headers }));
});
