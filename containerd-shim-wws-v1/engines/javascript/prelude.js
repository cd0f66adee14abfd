// What a worker finds beside the language itself: the web's interfaces, as far as they make sense
// in a program that answers one request. engine.c calls this function once, when the engine is
// built, and the functions that it returns.
//
// Workers may change every global and prototype, and harm themselves by it only: an instance serves
// one request of one worker.
(function (host) {
  "use strict";

  const { stringify } = JSON;
  const { hasOwnProperty } = Object.prototype;
  const hasOwn = (object, key) => hasOwnProperty.call(object, key);

  function define(target, members) {
    for (const key of Reflect.ownKeys(members)) {
      const descriptor = Object.getOwnPropertyDescriptor(members, key);
      Object.defineProperty(target, key, { ...descriptor, enumerable: false });
    }
  }

  // What the language has got since this QuickJS.

  function relative(length, index) {
    index = Math.trunc(index) || 0;
    return index < 0 ? length + index : index;
  }

  const at = {
    at(index) {
      return this[relative(this.length, index)];
    },
  };
  const TypedArray = Object.getPrototypeOf(Uint8Array);

  const searching = {
    findLast(test, self) {
      for (let i = this.length - 1; i >= 0; i--) {
        if (test.call(self, this[i], i, this)) return this[i];
      }
      return undefined;
    },
    findLastIndex(test, self) {
      for (let i = this.length - 1; i >= 0; i--) {
        if (test.call(self, this[i], i, this)) return i;
      }
      return -1;
    },
  };

  define(Array.prototype, { ...at, ...searching });
  define(TypedArray.prototype, { ...at, ...searching });
  define(Array.prototype, {
    toReversed() {
      return Array.from(this).reverse();
    },
    toSorted(compare) {
      return Array.from(this).sort(compare);
    },
    toSpliced(...change) {
      const copy = Array.from(this);
      copy.splice(...change);
      return copy;
    },
    with(index, value) {
      const copy = Array.from(this);
      index = relative(copy.length, index);
      if (index < 0 || index >= copy.length) throw new RangeError("there is no such element");
      copy[index] = value;
      return copy;
    },
  });
  define(String.prototype, {
    at(index) {
      return this.charAt(relative(this.length, index)) || undefined;
    },
    isWellFormed() {
      return host.wellFormed(String(this)) === String(this);
    },
    toWellFormed() {
      return host.wellFormed(String(this));
    },
  });
  define(Object, {
    hasOwn(object, key) {
      return hasOwn(Object(object), key);
    },
    groupBy(items, keyOf) {
      const groups = Object.create(null);
      let index = 0;
      for (const item of items) (groups[keyOf(item, index++)] ??= []).push(item);
      return groups;
    },
  });
  define(Map, {
    groupBy(items, keyOf) {
      const groups = new Map();
      let index = 0;
      for (const item of items) {
        const key = keyOf(item, index++);
        if (groups.has(key)) groups.get(key).push(item);
        else groups.set(key, [item]);
      }
      return groups;
    },
  });
  define(Promise, {
    withResolvers() {
      let resolve, reject;
      const promise = new this((yes, no) => {
        resolve = yes;
        reject = no;
      });
      return { promise, resolve, reject };
    },
  });

  class DOMException extends Error {
    constructor(message = "", name = "Error") {
      super(message);
      define(this, { name });
    }
  }

  // Bytes and text

  /** Return [buffer, offset, length] of an ArrayBuffer or a view of one, or null. */
  function bytesOf(value) {
    if (value instanceof ArrayBuffer) return [value, 0, value.byteLength];
    if (ArrayBuffer.isView(value)) return [value.buffer, value.byteOffset, value.byteLength];
    return null;
  }

  function needBytes(value) {
    const bytes = bytesOf(value);
    if (!bytes) throw new TypeError("this is neither an ArrayBuffer nor a view of one");
    return bytes;
  }

  const utf8Labels = ["utf-8", "utf8", "unicode-1-1-utf-8", "unicode11utf8", "x-unicode20utf8"];

  class TextEncoder {
    get encoding() {
      return "utf-8";
    }

    encode(text = "") {
      return new Uint8Array(host.encode(String(text)));
    }

    encodeInto(text, target) {
      let read = 0;
      let written = 0;
      for (const character of String(text)) {
        const bytes = this.encode(character);
        if (written + bytes.length > target.length) break;
        target.set(bytes, written);
        written += bytes.length;
        read += character.length;
      }
      return { read, written };
    }
  }

  class TextDecoder {
    #fatal;
    #ignoreBOM;
    #rest = null;
    #started = false;

    constructor(label = "utf-8", { fatal = false, ignoreBOM = false } = {}) {
      if (!utf8Labels.includes(String(label).trim().toLowerCase())) {
        throw new RangeError(`TextDecoder knows utf-8 only, not ${label}`);
      }
      this.#fatal = Boolean(fatal);
      this.#ignoreBOM = Boolean(ignoreBOM);
    }

    get encoding() {
      return "utf-8";
    }

    get fatal() {
      return this.#fatal;
    }

    get ignoreBOM() {
      return this.#ignoreBOM;
    }

    decode(data = new ArrayBuffer(0), { stream = false } = {}) {
      let [buffer, offset, length] = needBytes(data);
      if (this.#rest) {
        const joined = new Uint8Array(this.#rest.length + length);
        joined.set(this.#rest);
        joined.set(new Uint8Array(buffer, offset, length), this.#rest.length);
        [buffer, offset, length] = needBytes(joined);
        this.#rest = null;
      }
      if (stream) {
        const incomplete = host.incomplete(buffer, offset, length);
        length -= incomplete;
        if (incomplete) {
          this.#rest = new Uint8Array(buffer.slice(offset + length, offset + length + incomplete));
        }
      }
      let text = host.decode(buffer, offset, length, this.#fatal);
      if (text === null) {
        this.#started = false;
        this.#rest = null;
        throw new TypeError("the bytes are no UTF-8");
      }
      if (!this.#started && !this.#ignoreBOM && text.charCodeAt(0) === 0xfeff) text = text.slice(1);
      this.#started = stream && (this.#started || length > 0);
      return text;
    }
  }

  const decodeBytes = (data) => host.decode(...needBytes(data), false);

  function btoa(text) {
    text = String(text);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) {
      const code = text.charCodeAt(i);
      if (code > 255) {
        throw new DOMException("btoa takes characters up to U+00FF", "InvalidCharacterError");
      }
      bytes[i] = code;
    }
    return host.toBase64(bytes.buffer, 0, bytes.length);
  }

  function atob(text) {
    const buffer = host.fromBase64(String(text));
    if (!buffer) throw new DOMException("the text is no base64", "InvalidCharacterError");
    const bytes = new Uint8Array(buffer);
    const parts = [];
    for (let i = 0; i < bytes.length; i += 4096) {
      parts.push(String.fromCharCode(...bytes.subarray(i, i + 4096)));
    }
    return parts.join("");
  }

  const crypto = {
    getRandomValues(array) {
      const [buffer, offset, length] = needBytes(array);
      if (length > 65536) {
        throw new DOMException("at most 65536 bytes at once", "QuotaExceededError");
      }
      host.random(buffer, offset, length);
      return array;
    },
    randomUUID() {
      const bytes = crypto.getRandomValues(new Uint8Array(16));
      bytes[6] = (bytes[6] & 15) | 64;
      bytes[8] = (bytes[8] & 63) | 128;
      const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
      return digits.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
    },
  };

  // Printing

  const MAX_DEPTH = 4;
  const MAX_ITEMS = 100;

  function cut(items, count) {
    return count > MAX_ITEMS ? [...items, `... ${count - MAX_ITEMS} more`] : items;
  }

  function wrap(open, items, close) {
    if (!items.length) return open + close;
    const line = items.join(", ");
    if (line.length <= 72 && !line.includes("\n")) return `${open} ${line} ${close}`;
    return `${open}\n  ${items.join(",\n").replaceAll("\n", "\n  ")}\n${close}`;
  }

  function stackOf(error) {
    const lines = String(error.stack ?? "").split("\n");
    const ours = /\(prelude\.js|at (compile|run) \(native\)/;
    return lines.filter((line) => line.trim() && !ours.test(line)).join("\n");
  }

  function showError(error) {
    let text = `${error.name}: ${error.message}`;
    const stack = stackOf(error);
    if (stack) text += `\n${stack}`;
    return text;
  }

  function members(value, depth, seen) {
    const keys = Object.keys(value);
    const shown = keys.slice(0, MAX_ITEMS).map((key) => {
      const { get, value: member } = Object.getOwnPropertyDescriptor(value, key) ?? {};
      const name = /^[A-Za-z_$][\w$]*$/.test(key) ? key : stringify(key);
      return `${name}: ${get ? "[Getter]" : show(member, depth + 1, seen)}`;
    });
    return cut(shown, keys.length);
  }

  function showObject(value, depth, seen) {
    const name = value.constructor?.name ?? "";
    if (value instanceof Error) return showError(value);
    if (value instanceof Date) return isNaN(value) ? "Invalid Date" : value.toISOString();
    if (value instanceof RegExp) return String(value);
    if (value instanceof Promise) return "Promise {}";
    if (depth > MAX_DEPTH) return Array.isArray(value) ? "[Array]" : `[${name || "Object"}]`;
    const inner = (item) => show(item, depth + 1, seen);
    if (Array.isArray(value) || (ArrayBuffer.isView(value) && !(value instanceof DataView))) {
      const items = Array.prototype.slice.call(value, 0, MAX_ITEMS).map(inner);
      const prefix = Array.isArray(value) ? "" : `${name}(${value.length}) `;
      return wrap(`${prefix}[`, cut(items, value.length), "]");
    }
    if (value instanceof ArrayBuffer) return `ArrayBuffer { byteLength: ${value.byteLength} }`;
    if (value instanceof Map) {
      const items = [...value].slice(0, MAX_ITEMS).map(([k, v]) => `${inner(k)} => ${inner(v)}`);
      return wrap(`Map(${value.size}) {`, cut(items, value.size), "}");
    }
    if (value instanceof Set) {
      const items = [...value].slice(0, MAX_ITEMS).map(inner);
      return wrap(`Set(${value.size}) {`, cut(items, value.size), "}");
    }
    if (value instanceof Headers || value instanceof URLSearchParams) {
      const items = [...value].map(([k, v]) => `${stringify(k)}: ${stringify(v)}`);
      return wrap(`${name} {`, items, "}");
    }
    if (value instanceof URL) return `URL ${value.href}`;
    if (value instanceof Blob) return `${name} { size: ${value.size} }`;
    if (value instanceof FormData) return wrap(`${name} {`, [...value].map(inner), "}");
    if (value instanceof Request) return `Request { ${value.method} ${value.url} }`;
    if (value instanceof Response) return `Response { ${value.status} }`;
    return wrap(name && name !== "Object" ? `${name} {` : "{", members(value, depth, seen), "}");
  }

  function show(value, depth, seen) {
    switch (typeof value) {
      case "string":
        return depth ? stringify(value) : value;
      case "bigint":
        return `${value}n`;
      case "symbol":
        return value.toString();
      case "function":
        return `[${/^class\b/.test(String(value)) ? "class" : "Function"}: ${value.name || "?"}]`;
      case "object":
        break;
      default:
        return Object.is(value, -0) ? "-0" : String(value);
    }
    if (value === null) return "null";
    if (seen.includes(value)) return "[Circular]";
    return showObject(value, depth, [...seen, value]);
  }

  function inspect(value, depth = 0) {
    try {
      return show(value, depth, []);
    } catch {
      return "[a value that cannot be shown]";
    }
  }

  function format(values) {
    const rest = [...values];
    const parts = [];
    if (typeof rest[0] === "string" && rest.length > 1) {
      const template = rest.shift();
      parts.push(
        template.replace(/%([sdifjoOc%])/g, (found, kind) => {
          if (kind === "%") return "%";
          if (!rest.length) return found;
          const value = rest.shift();
          if (kind === "c") return "";
          if (kind === "d") return typeof value === "object" ? "NaN" : String(Number(value));
          if (kind === "i") return String(parseInt(value, 10));
          if (kind === "f") return String(parseFloat(value));
          if (kind === "j") return stringify(value);
          return inspect(value, kind === "s" ? 0 : 1);
        }),
      );
    }
    for (const value of rest) parts.push(inspect(value));
    return parts.join(" ");
  }

  let indent = "";
  const counts = new Map();
  const times = new Map();

  function print(fd, values) {
    let text = format(values);
    if (indent) text = indent + text.replaceAll("\n", `\n${indent}`);
    host.write(fd, `${text}\n`);
  }

  const elapsed = (label) => `${label}: ${(host.monotonic() - times.get(label)).toFixed(3)} ms`;

  const console = {
    log: (...values) => print(1, values),
    info: (...values) => print(1, values),
    debug: (...values) => print(1, values),
    dir: (value) => print(1, [inspect(value, 1)]),
    table: (value) => print(1, [value]),
    warn: (...values) => print(2, values),
    error: (...values) => print(2, values),
    trace: (...values) => print(2, [`Trace: ${format(values)}\n${stackOf(new Error())}`]),
    assert(condition, ...values) {
      if (!condition) print(2, [`Assertion failed${values.length ? ":" : ""}`, ...values]);
    },
    group(...values) {
      if (values.length) print(1, values);
      indent += "  ";
    },
    groupEnd() {
      indent = indent.slice(2);
    },
    count(label = "default") {
      counts.set(label, (counts.get(label) ?? 0) + 1);
      print(1, [`${label}: ${counts.get(label)}`]);
    },
    countReset: (label = "default") => void counts.delete(label),
    time: (label = "default") => void times.set(label, host.monotonic()),
    timeLog: (label = "default", ...values) => print(1, [elapsed(label), ...values]),
    timeEnd(label = "default") {
      print(1, [elapsed(label)]);
      times.delete(label);
    },
  };

  /** Print what was thrown, with the stack, for the worker's author. */
  function complain(what, reason) {
    const text = reason instanceof Error ? inspect(reason) : inspect(reason, 1);
    host.write(2, `${what}${text}\n`);
  }

  // URLs (url.spec.whatwg.org, without its older encodings)

  const ports = { "http:": "80", "https:": "443", "ws:": "80", "wss:": "443", "ftp:": "21" };
  const isSpecial = (protocol) => protocol === "file:" || hasOwn(ports, protocol);

  const escapes = {
    fragment: /[^!#-;=?-_a-~]/gu,
    query: /[^!$-;=?-~]/gu,
    specialQuery: /[^!$-&(-;=?-~]/gu,
    path: /[^!$-;=@-_a-z|~]/gu,
    userinfo: /[^!$-.0-9A-Z_a-z~]/gu,
  };

  function percentEncode(text, set) {
    return text.replace(set, (character) =>
      Array.from(
        new Uint8Array(host.encode(character)),
        (byte) => `%${byte.toString(16).toUpperCase().padStart(2, "0")}`,
      ).join(""),
    );
  }

  function percentDecode(text) {
    if (!text.includes("%")) return text;
    const bytes = new Uint8Array(host.encode(text));
    let length = 0;
    for (let i = 0; i < bytes.length; i++) {
      const pair = String.fromCharCode(bytes[i + 1] ?? 0, bytes[i + 2] ?? 0);
      if (bytes[i] === 0x25 && /^[0-9A-Fa-f]{2}$/.test(pair)) {
        bytes[length++] = parseInt(pair, 16);
        i += 2;
      } else {
        bytes[length++] = bytes[i];
      }
    }
    return host.decode(bytes.buffer, 0, length, false);
  }

  // RFC 3492, with its parameters.
  function punycode(label) {
    const points = Array.from(label, (character) => character.codePointAt(0));
    const basic = points.filter((point) => point < 128);
    let output = String.fromCharCode(...basic);
    let handled = basic.length;
    if (handled) output += "-";
    let [n, delta, bias] = [128, 0, 72];
    const digit = (value) => String.fromCharCode(value + (value < 26 ? 97 : 22));
    while (handled < points.length) {
      const next = Math.min(...points.filter((point) => point >= n));
      delta += (next - n) * (handled + 1);
      n = next;
      for (const point of points) {
        if (point < n) delta++;
        if (point !== n) continue;
        let q = delta;
        for (let k = 36; ; k += 36) {
          const t = k <= bias ? 1 : k >= bias + 26 ? 26 : k - bias;
          if (q < t) break;
          output += digit(t + ((q - t) % (36 - t)));
          q = Math.floor((q - t) / (36 - t));
        }
        output += digit(q);
        delta = handled === basic.length ? Math.floor(delta / 700) : delta >> 1;
        delta += Math.floor(delta / ++handled);
        let k = 0;
        for (; delta > 455; k += 36) delta = Math.floor(delta / 35);
        bias = k + Math.floor((36 * delta) / (delta + 38));
        delta = 0;
      }
      delta++;
      n++;
    }
    return `xn--${output}`;
  }

  function parseIPv4(host) {
    const parts = host.replace(/\.$/, "").split(".");
    if (!/^(0x[0-9a-f]*|\d+)$/i.test(parts[parts.length - 1])) return host;
    const numbers = parts.map((part) => {
      if (/^0x[0-9a-f]*$/i.test(part)) return parseInt(part.slice(2) || "0", 16);
      if (/^0[0-7]*$/.test(part)) return parseInt(part, 8);
      return /^[1-9]\d*$/.test(part) ? Number(part) : NaN;
    });
    const last = numbers.pop();
    if (numbers.length > 3 || numbers.some((n) => !(n < 256))) return null;
    if (!(last < 256 ** (4 - numbers.length))) return null;
    const value = numbers.reduce((sum, n, i) => sum + n * 256 ** (3 - i), last);
    return [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join(".");
  }

  function parseIPv6(text) {
    const tail = /^(.*:)(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
    if (tail) {
      const bytes = tail.slice(2).map(Number);
      if (bytes.some((byte) => byte > 255)) return null;
      const word = (i) => (bytes[i] * 256 + bytes[i + 1]).toString(16);
      text = `${tail[1]}${word(0)}:${word(2)}`;
    }
    const halves = text.split("::");
    if (halves.length > 2) return null;
    const [head, rest] = halves.map((half) => (half ? half.split(":") : []));
    if (rest && head.length + rest.length > 7) return null;
    const words = rest ? [...head, ...Array(8 - head.length - rest.length).fill("0"), ...rest] : head;
    if (words.length !== 8 || words.some((word) => !/^[0-9a-f]{1,4}$/i.test(word))) return null;
    const plain = words.map((word) => parseInt(word, 16).toString(16)).join(":");
    const runs = [...plain.matchAll(/(?:^|:)0(?::0)+(?=:|$)/g)].map((found) => found[0]);
    const longest = runs.sort((a, b) => b.replace(/^:/, "").length - a.replace(/^:/, "").length)[0];
    if (!longest) return plain;
    const place = plain.search(new RegExp(`(?<=^|:)${longest.replace(/^:/, "")}(?=:|$)`));
    const length = longest.replace(/^:/, "").length;
    const before = plain.slice(0, place).replace(/:$/, "");
    const after = plain.slice(place + length).replace(/^:/, "");
    return `${before}::${after}`;
  }

  /** Return a host in its one form, or null if it is none. */
  function parseHost(text, special) {
    if (text.startsWith("[")) {
      const address = text.endsWith("]") ? parseIPv6(text.slice(1, -1)) : null;
      return address && `[${address}]`;
    }
    if (!special) {
      return /[\0\t\n\r #/:<>?@[\\\]^|]/.test(text) ? null : percentEncode(text, /[^ -~]/gu);
    }
    let name = percentDecode(text);
    if (/[^\0-\x7f]/.test(name)) {
      name = name.normalize("NFKC").toLowerCase().replace(/[\u3002\uff0e\uff61]/g, ".");
      name = name.normalize("NFC").replace(/\u00ad|\u200b|\u2060|\ufeff/g, "");
      const labels = name.split(".");
      name = labels.map((part) => (/[^\0-\x7f]/.test(part) ? punycode(part) : part)).join(".");
    }
    name = name.toLowerCase();
    if (!name || /[\0-\x20"#%/:<>?@[\\\]^`{|}\x7f]/.test(name) || /\ufffd/.test(name)) return null;
    return parseIPv4(name);
  }

  function parsePath(text, special, base) {
    const path = base;
    const parts = text.split(special ? /[/\\]/ : "/");
    parts.forEach((part, i) => {
      const last = i === parts.length - 1;
      const dots = part.replace(/%2e/gi, ".");
      if (dots === "..") {
        path.pop();
        if (last) path.push("");
      } else if (dots === ".") {
        if (last) path.push("");
      } else {
        path.push(percentEncode(part, escapes.path));
      }
    });
    return path;
  }

  function parsePort(text, protocol) {
    if (!/^\d*$/.test(text) || Number(text) > 65535) return null;
    const port = text && String(Number(text));
    return port === ports[protocol] ? "" : port;
  }

  function parseAuthority(url, text) {
    const special = isSpecial(url.protocol);
    const place = text.lastIndexOf("@");
    if (place >= 0) {
      const [, name, password] = /^([^:]*):?([^]*)$/.exec(text.slice(0, place));
      url.username = percentEncode(name, escapes.userinfo);
      url.password = percentEncode(password, escapes.userinfo);
    }
    const found = /^(\[[^\]]*\]|[^:]*)(?::(.*))?$/s.exec(text.slice(place + 1));
    if (!found) return false;
    if (!found[1] && (special || place >= 0 || found[2])) {
      if (url.protocol !== "file:") return false;
    }
    url.host = found[1] && parseHost(found[1], special);
    url.port = parsePort(found[2] ?? "", url.protocol);
    if (url.protocol === "file:" && url.host === "localhost") url.host = "";
    return url.host !== null && url.port !== null;
  }

  /** Return a URL's parts, or null if the text is none. path: a list, or text where opaque. */
  function parseURL(input, base) {
    let text = host.wellFormed(String(input)).replace(/^[\0-\x20]+|[\0-\x20]+$|[\t\n\r]/g, "");
    const url = { username: "", password: "", host: null, port: "", query: null, fragment: null };
    const hash = text.indexOf("#");
    if (hash >= 0) {
      url.fragment = percentEncode(text.slice(hash + 1), escapes.fragment);
      text = text.slice(0, hash);
    }
    let scheme = /^([a-z][a-z0-9+.-]*):/i.exec(text);
    if (scheme) {
      url.protocol = scheme[0].toLowerCase();
      const rest = text.slice(scheme[0].length);
      // `https:path` is relative to a base of the same scheme.
      if (base && isSpecial(url.protocol) && base.protocol === url.protocol && !/^[/\\]/.test(rest)) {
        scheme = null;
      }
      text = rest;
    } else {
      if (!base) return null;
      url.protocol = base.protocol;
    }
    const special = isSpecial(url.protocol);
    const mark = text.indexOf("?");
    if (mark >= 0) {
      url.query = percentEncode(text.slice(mark + 1), special ? escapes.specialQuery : escapes.query);
      text = text.slice(0, mark);
    }
    const slashes = special ? /^[/\\]{2}/ : /^\/\//;
    const known = special && url.protocol !== "file:";
    if (slashes.test(text) || (scheme && known)) {
      text = text.replace(known ? /^[/\\]+/ : slashes, "");
      const end = text.search(special ? /[/\\]/ : /\//);
      const authority = end < 0 ? text : text.slice(0, end);
      if (!parseAuthority(url, authority)) return null;
      const path = end < 0 ? "" : text.slice(end + 1);
      url.path = end < 0 && !special ? [] : parsePath(path, special, []);
      return url;
    }
    if (scheme || !base) {
      if (url.protocol === "file:") url.host = "";
      if (special || text.startsWith("/")) {
        url.path = parsePath(text.replace(special ? /^[/\\]/ : /^\//, ""), special, []);
      } else {
        url.path = percentEncode(text, /[^ -~]/gu);
      }
      return url;
    }
    if (typeof base.path === "string") {
      if (text || mark >= 0 || hash < 0) return null;
      return { ...base, fragment: url.fragment };
    }
    const { username, password, port } = base;
    Object.assign(url, { username, password, port, host: base.host });
    if (!text) {
      url.path = [...base.path];
      if (mark < 0) url.query = base.query;
    } else if (/^[/\\]/.test(text) && (special || text[0] === "/")) {
      url.path = parsePath(text.slice(1), special, []);
    } else {
      url.path = parsePath(text, special, base.path.slice(0, -1));
    }
    return url;
  }

  function pathText(url) {
    if (typeof url.path === "string") return url.path;
    return url.path.map((part) => `/${part}`).join("");
  }

  function urlText(url) {
    let text = url.protocol;
    if (url.host !== null) {
      text += "//";
      if (url.username || url.password) {
        text += url.username + (url.password ? `:${url.password}` : "") + "@";
      }
      text += url.host + (url.port && `:${url.port}`);
    } else if (typeof url.path !== "string" && url.path.length > 1 && !url.path[0]) {
      text += "/.";
    }
    text += pathText(url);
    if (url.query !== null) text += `?${url.query}`;
    if (url.fragment !== null) text += `#${url.fragment}`;
    return text;
  }

  const formEncode = (text) =>
    percentEncode(host.wellFormed(text), /[^*.0-9A-Z_a-z -]/gu).replaceAll(" ", "+");
  const formDecode = (text) => percentDecode(text.replaceAll("+", " "));

  function parseForm(text) {
    const pairs = text.split("&").filter((part) => part);
    return pairs.map((part) => {
      const place = part.indexOf("=");
      const [name, value] = place < 0 ? [part, ""] : [part.slice(0, place), part.slice(place + 1)];
      return [formDecode(name), formDecode(value)];
    });
  }

  class URLSearchParams {
    #pairs = [];
    #changed = null;

    constructor(init = "", changed = null) {
      if (typeof init === "object" && init !== null) {
        if (Symbol.iterator in init) {
          for (const pair of init) {
            const [name, value, ...more] = pair;
            if (more.length || [...pair].length !== 2) {
              throw new TypeError("each element must be a pair of name and value");
            }
            this.#pairs.push([host.wellFormed(String(name)), host.wellFormed(String(value))]);
          }
        } else {
          for (const name of Object.keys(init)) {
            this.#pairs.push([host.wellFormed(name), host.wellFormed(String(init[name]))]);
          }
        }
      } else {
        this.#pairs = parseForm(host.wellFormed(String(init)).replace(/^\?/, ""));
      }
      this.#changed = typeof changed === "function" ? changed : null;
    }

    #tell() {
      if (this.#changed) this.#changed(this.toString());
    }

    get size() {
      return this.#pairs.length;
    }

    append(name, value) {
      this.#pairs.push([host.wellFormed(String(name)), host.wellFormed(String(value))]);
      this.#tell();
    }

    delete(name, value) {
      const gone = ([n, v]) => n === String(name) && (value === undefined || v === String(value));
      this.#pairs = this.#pairs.filter((pair) => !gone(pair));
      this.#tell();
    }

    get(name) {
      return this.#pairs.find(([n]) => n === String(name))?.[1] ?? null;
    }

    getAll(name) {
      return this.#pairs.filter(([n]) => n === String(name)).map(([, value]) => value);
    }

    has(name, value) {
      return this.#pairs.some(
        ([n, v]) => n === String(name) && (value === undefined || v === String(value)),
      );
    }

    set(name, value) {
      const first = this.#pairs.find(([n]) => n === String(name));
      if (first) {
        first[1] = host.wellFormed(String(value));
        this.#pairs = this.#pairs.filter((pair) => pair === first || pair[0] !== first[0]);
        this.#tell();
      } else {
        this.append(name, value);
      }
    }

    sort() {
      this.#pairs.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
      this.#tell();
    }

    forEach(call, self) {
      for (const [name, value] of this) call.call(self, value, name, this);
    }

    *entries() {
      for (let i = 0; i < this.#pairs.length; i++) yield [...this.#pairs[i]];
    }

    *keys() {
      for (const [name] of this.entries()) yield name;
    }

    *values() {
      for (const [, value] of this.entries()) yield value;
    }

    [Symbol.iterator]() {
      return this.entries();
    }

    toString() {
      return this.#pairs.map(([n, v]) => `${formEncode(n)}=${formEncode(v)}`).join("&");
    }
  }

  class URL {
    #url;
    #params = null;

    constructor(text, base) {
      const parsedBase = base === undefined ? null : parseURL(base, null);
      const url = base !== undefined && !parsedBase ? null : parseURL(text, parsedBase);
      if (!url) throw new TypeError(`Invalid URL: ${text}`);
      this.#url = url;
    }

    static canParse(text, base) {
      return URL.parse(text, base) !== null;
    }

    static parse(text, base) {
      try {
        return new URL(text, base);
      } catch {
        return null;
      }
    }

    get href() {
      return urlText(this.#url);
    }

    set href(text) {
      const url = parseURL(text, null);
      if (!url) throw new TypeError(`Invalid URL: ${text}`);
      this.#url = url;
      this.#params = null;
    }

    get origin() {
      const { protocol, host: name, port } = this.#url;
      return hasOwn(ports, protocol) ? `${protocol}//${name}${port && `:${port}`}` : "null";
    }

    get protocol() {
      return this.#url.protocol;
    }

    set protocol(text) {
      const found = /^([a-z][a-z0-9+.-]*):?/i.exec(String(text));
      const protocol = found && `${found[1].toLowerCase()}:`;
      if (!protocol || isSpecial(protocol) !== isSpecial(this.#url.protocol)) return;
      this.#url.protocol = protocol;
      this.#url.port = parsePort(this.#url.port, protocol);
    }

    get username() {
      return this.#url.username;
    }

    set username(text) {
      if (this.#url.host) this.#url.username = percentEncode(String(text), escapes.userinfo);
    }

    get password() {
      return this.#url.password;
    }

    set password(text) {
      if (this.#url.host) this.#url.password = percentEncode(String(text), escapes.userinfo);
    }

    get host() {
      return (this.#url.host ?? "") + (this.#url.port && `:${this.#url.port}`);
    }

    set host(text) {
      const found = /^(\[[^\]]*\]|[^:/?#\\]*)(?::(\d+))?/.exec(String(text));
      this.hostname = found[1];
      if (found[2] !== undefined) this.port = found[2];
    }

    get hostname() {
      return this.#url.host ?? "";
    }

    set hostname(text) {
      if (typeof this.#url.path === "string") return;
      const name = parseHost(/^[^/?#\\]*/.exec(String(text))[0], isSpecial(this.#url.protocol));
      if (name !== null) this.#url.host = name;
    }

    get port() {
      return this.#url.port;
    }

    set port(text) {
      const port = parsePort(/^\d*/.exec(String(text))[0], this.#url.protocol);
      if (this.#url.host && port !== null) this.#url.port = port;
    }

    get pathname() {
      return pathText(this.#url);
    }

    set pathname(text) {
      if (typeof this.#url.path === "string") return;
      const special = isSpecial(this.#url.protocol);
      const path = String(text).replace(special ? /^[/\\]/ : /^\//, "");
      this.#url.path = parsePath(path.replace(/\?/g, "%3F").replace(/#/g, "%23"), special, []);
    }

    get search() {
      return this.#url.query ? `?${this.#url.query}` : "";
    }

    set search(text) {
      text = host.wellFormed(String(text)).replace(/^\?/, "");
      const set = isSpecial(this.#url.protocol) ? escapes.specialQuery : escapes.query;
      this.#url.query = text ? percentEncode(text, set) : null;
      this.#params = null;
    }

    get searchParams() {
      this.#params ??= new URLSearchParams(this.#url.query ?? "", (text) => {
        this.#url.query = text || null;
      });
      return this.#params;
    }

    get hash() {
      return this.#url.fragment ? `#${this.#url.fragment}` : "";
    }

    set hash(text) {
      text = host.wellFormed(String(text)).replace(/^#/, "");
      this.#url.fragment = text ? percentEncode(text, escapes.fragment) : null;
    }

    toString() {
      return this.href;
    }

    toJSON() {
      return this.href;
    }
  }

  // Fetch (fetch.spec.whatwg.org)

  const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

  function headerName(name) {
    name = String(name);
    if (!token.test(name)) throw new TypeError(`${stringify(name)} is no name of a header`);
    return name.toLowerCase();
  }

  function headerValue(name, value) {
    value = String(value).replace(/^[\t\n\r ]+|[\t\n\r ]+$/g, "");
    if (/[\0\n\r]/.test(value)) {
      throw new TypeError(`the header ${name} has a line break or a NUL in its value`);
    }
    return host.wellFormed(value);
  }

  const given = Symbol("given");

  class Headers {
    // Lower-case name -> values in their order.
    #values = new Map();

    constructor(init, source) {
      if (source === given) {
        for (const [name, value] of init) this.#add(name.toLowerCase(), value);
        return;
      }
      if (init === undefined || init === null) return;
      if (typeof init !== "object") throw new TypeError("headers are an object or pairs");
      if (init instanceof Headers) {
        init.#values.forEach((values, name) => this.#values.set(name, [...values]));
      } else if (Symbol.iterator in init) {
        for (const pair of init) {
          const [name, value, ...more] = pair;
          if (more.length || value === undefined) {
            throw new TypeError("each header must be a pair of name and value");
          }
          this.append(name, value);
        }
      } else {
        for (const name of Object.keys(init)) {
          const value = init[name];
          for (const item of Array.isArray(value) ? value : [value]) this.append(name, item);
        }
      }
    }

    #add(name, value) {
      const values = this.#values.get(name);
      if (values) values.push(value);
      else this.#values.set(name, [value]);
    }

    append(name, value) {
      name = headerName(name);
      this.#add(name, headerValue(name, value));
    }

    delete(name) {
      this.#values.delete(headerName(name));
    }

    get(name) {
      return this.#values.get(headerName(name))?.join(", ") ?? null;
    }

    getSetCookie() {
      return [...(this.#values.get("set-cookie") ?? [])];
    }

    has(name) {
      return this.#values.has(headerName(name));
    }

    set(name, value) {
      name = headerName(name);
      this.#values.set(name, [headerValue(name, value)]);
    }

    forEach(call, self) {
      for (const [name, value] of this) call.call(self, value, name, this);
    }

    *entries() {
      for (const name of [...this.#values.keys()].sort()) {
        const values = this.#values.get(name);
        if (name !== "set-cookie") yield [name, values.join(", ")];
        else for (const value of values) yield [name, value];
      }
    }

    *keys() {
      for (const [name] of this.entries()) yield name;
    }

    *values() {
      for (const [, value] of this.entries()) yield value;
    }

    [Symbol.iterator]() {
      return this.entries();
    }

    // As upstream: JSON.stringify(headers) shows them. A list where one line will not do.
    toJSON() {
      const object = {};
      this.#values.forEach((values, name) => {
        object[name] = name === "set-cookie" && values.length > 1 ? values : values.join(", ");
      });
      return object;
    }
  }

  const typeOf = (type) => (/[^ -~]/.test(String(type)) ? "" : String(type).toLowerCase());

  class Blob {
    #bytes;
    #type;

    constructor(parts = [], { type = "" } = {}) {
      this.#bytes = join([...parts].map((part) => (part instanceof Blob ? part.#bytes : part)));
      this.#type = typeOf(type);
    }

    get size() {
      return this.#bytes.length;
    }

    get type() {
      return this.#type;
    }

    slice(start = 0, end = this.size, type = "") {
      return new Blob([this.#bytes.slice(start, end)], { type });
    }

    async text() {
      return decodeBytes(this.#bytes);
    }

    async bytes() {
      return this.#bytes.slice();
    }

    async arrayBuffer() {
      return this.#bytes.slice().buffer;
    }

    /** Not for workers: the blob's own bytes. */
    static bytesOf(blob) {
      return blob.#bytes;
    }
  }

  const { bytesOf: bytesOfBlob } = Blob;
  delete Blob.bytesOf;

  class File extends Blob {
    #name;
    #lastModified;

    constructor(parts, name, options = {}) {
      super(parts, options);
      this.#name = String(name);
      this.#lastModified = Number(options.lastModified ?? Date.now());
    }

    get name() {
      return this.#name;
    }

    get lastModified() {
      return this.#lastModified;
    }
  }

  /** Return a Uint8Array of all parts: text, buffers and views of them. */
  function join(parts) {
    const pieces = parts.map((part) => {
      const [buffer, offset, length] = bytesOf(part) ?? needBytes(host.encode(String(part)));
      return new Uint8Array(buffer, offset, length);
    });
    const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let place = 0;
    for (const piece of pieces) {
      bytes.set(piece, place);
      place += piece.length;
    }
    return bytes;
  }

  class FormData {
    #pairs = [];

    constructor(form) {
      if (form !== undefined) throw new TypeError("there are no HTML forms here");
    }

    static #entry(name, value, filename) {
      name = host.wellFormed(String(name));
      if (!(value instanceof Blob)) return [name, host.wellFormed(String(value))];
      if (value instanceof File && filename === undefined) return [name, value];
      const { type } = value;
      return [name, new File([value], filename ?? value.name ?? "blob", { type })];
    }

    append(name, value, filename) {
      this.#pairs.push(FormData.#entry(name, value, filename));
    }

    set(name, value, filename) {
      const entry = FormData.#entry(name, value, filename);
      const place = this.#pairs.findIndex(([n]) => n === entry[0]);
      if (place < 0) {
        this.#pairs.push(entry);
        return;
      }
      this.#pairs[place] = entry;
      this.#pairs = this.#pairs.filter(([n], i) => i <= place || n !== entry[0]);
    }

    get(name) {
      return this.#pairs.find(([n]) => n === String(name))?.[1] ?? null;
    }

    getAll(name) {
      return this.#pairs.filter(([n]) => n === String(name)).map(([, value]) => value);
    }

    has(name) {
      return this.#pairs.some(([n]) => n === String(name));
    }

    delete(name) {
      this.#pairs = this.#pairs.filter(([n]) => n !== String(name));
    }

    forEach(call, self) {
      for (const [name, value] of this) call.call(self, value, name, this);
    }

    *entries() {
      for (let i = 0; i < this.#pairs.length; i++) yield [...this.#pairs[i]];
    }

    *keys() {
      for (const [name] of this.entries()) yield name;
    }

    *values() {
      for (const [, value] of this.entries()) yield value;
    }

    [Symbol.iterator]() {
      return this.entries();
    }
  }

  const quoted = (text) =>
    text.replace(/\r\n?|\n/g, "%0D%0A").replace(/"/g, "%22");

  function writeMultipart(form) {
    const boundary = `----form-${crypto.randomUUID()}`;
    const parts = [];
    for (const [name, value] of form) {
      let head = `--${boundary}\r\nContent-Disposition: form-data; name="${quoted(name)}"`;
      if (value instanceof File) {
        head += `; filename="${quoted(value.name)}"\r\n`;
        head += `Content-Type: ${value.type || "application/octet-stream"}`;
      }
      parts.push(`${head}\r\n\r\n`, value instanceof File ? bytesOfBlob(value) : value, "\r\n");
    }
    parts.push(`--${boundary}--\r\n`);
    return [join(parts), `multipart/form-data; boundary=${boundary}`];
  }

  /** Return where `needle` begins in `bytes` at or after `start`, or -1. */
  function find(bytes, needle, start) {
    for (let i = bytes.indexOf(needle[0], start); i >= 0; i = bytes.indexOf(needle[0], i + 1)) {
      let length = 1;
      while (length < needle.length && bytes[i + length] === needle[length]) length++;
      if (length === needle.length) return i;
    }
    return -1;
  }

  const bytesOfText = (text) => new Uint8Array(host.encode(text));

  // RFC 7578
  function readMultipart(bytes, boundary) {
    const form = new FormData();
    const delimiter = bytesOfText(`\r\n--${boundary}`);
    const blank = bytesOfText("\r\n\r\n");
    bytes = join(["\r\n", bytes]);
    let place = find(bytes, delimiter, 0);
    for (;;) {
      if (place < 0) throw new TypeError("the multipart body has no end");
      place += delimiter.length;
      if (bytes[place] === 45 && bytes[place + 1] === 45) return form;
      const body = find(bytes, blank, place);
      const end = body < 0 ? -1 : find(bytes, delimiter, body + 2);
      if (end < 0) throw new TypeError("the multipart body has no end");
      const head = decodeBytes(bytes.subarray(place, body));
      const disposition = /^content-disposition:\s*form-data\s*;(.*)$/im.exec(head)?.[1] ?? "";
      const name = /(?:^|[;\s])name="([^"]*)"/i.exec(disposition)?.[1];
      const filename = /(?:^|[;\s])filename="([^"]*)"/i.exec(disposition)?.[1];
      const content = bytes.subarray(Math.min(body + blank.length, end), end);
      if (name === undefined) throw new TypeError("a part of the multipart body has no name");
      const unquote = (text) => text.replace(/%22/g, '"').replace(/%0D%0A/gi, "\r\n");
      if (filename === undefined) {
        form.append(unquote(name), decodeBytes(content));
      } else {
        const type = /^content-type:\s*(.*?)\s*$/im.exec(head)?.[1] ?? "text/plain";
        form.append(unquote(name), new File([content], unquote(filename), { type }));
      }
      place = end;
    }
  }

  /** Return a body as text, a Uint8Array or null, and the type that it has by itself. */
  function extractBody(body) {
    if (body === null || body === undefined) return [null, null];
    if (typeof body === "string") return [body, "text/plain;charset=UTF-8"];
    const bytes = bytesOf(body);
    if (bytes) {
      const [buffer, offset, length] = bytes;
      return [new Uint8Array(buffer.slice(offset, offset + length)), null];
    }
    if (body instanceof URLSearchParams) {
      return [body.toString(), "application/x-www-form-urlencoded;charset=UTF-8"];
    }
    if (body instanceof Blob) return [bytesOfBlob(body).slice(), body.type || null];
    if (body instanceof FormData) return writeMultipart(body);
    return [String(body), "text/plain;charset=UTF-8"];
  }

  class Body {
    #body;
    #used = false;

    constructor(body) {
      this.#body = body;
    }

    // As upstream a string, or a Uint8Array where it is none: streams have nothing to wait for.
    get body() {
      return this.#body;
    }

    get bodyUsed() {
      return this.#used;
    }

    #text() {
      this.#used = true;
      if (typeof this.#body === "string") return this.#body;
      return this.#body ? decodeBytes(this.#body).replace(/^\ufeff/, "") : "";
    }

    #bytes() {
      this.#used = true;
      if (typeof this.#body === "string") return new Uint8Array(host.encode(this.#body));
      return this.#body ? this.#body.slice() : new Uint8Array(0);
    }

    // Upstream returns the text itself. A promise that shows it when it is made a string serves
    // workers written for that too: JSON.parse(request.text()).
    text() {
      const text = this.#text();
      const promise = Promise.resolve(text);
      define(promise, { toString: () => text });
      return promise;
    }

    async json() {
      return JSON.parse(this.#text());
    }

    async bytes() {
      return this.#bytes();
    }

    async arrayBuffer() {
      return this.#bytes().buffer;
    }

    async blob() {
      return new Blob([this.#bytes()], { type: this.headers.get("content-type") ?? "" });
    }

    async formData() {
      const type = this.headers.get("content-type") ?? "";
      const [, name, parameters] = /^\s*([^\s;]*)(.*)$/s.exec(type);
      if (name.toLowerCase() === "application/x-www-form-urlencoded") {
        const form = new FormData();
        for (const [key, value] of parseForm(this.#text())) form.append(key, value);
        return form;
      }
      const boundary = /;\s*boundary=(?:"([^"]+)"|([^\s;]+))/i.exec(parameters);
      if (name.toLowerCase() !== "multipart/form-data" || !boundary) {
        throw new TypeError(`a body of type ${stringify(type)} is no form`);
      }
      return readMultipart(this.#bytes(), boundary[1] ?? boundary[2]);
    }
  }

  const standardMethods = ["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"];

  function methodName(method) {
    method = String(method);
    if (!token.test(method)) throw new TypeError(`${stringify(method)} is no method`);
    const upper = method.toUpperCase();
    return standardMethods.includes(upper) ? upper : method;
  }

  function absolute(url) {
    const parsed = parseURL(url, null);
    if (!parsed) throw new TypeError(`Invalid URL: ${url}`);
    if (parsed.username || parsed.password) {
      throw new TypeError("a request's URL has no user and password: send an authorization header");
    }
    return urlText(parsed);
  }

  class Request extends Body {
    #url;
    #method;
    #headers;
    #params;

    constructor(input, init = {}, source) {
      if (source === given) {
        super(init.body);
        [this.#url, this.#method, this.#params] = [input, init.method, init.params];
        this.#headers = init.headers;
        return;
      }
      init ??= {};
      const from = input instanceof Request ? input : null;
      const [body, type] = extractBody(init.body);
      super(init.body === undefined && from ? from.body : body);
      this.#url = from ? from.url : absolute(input);
      this.#method = methodName(init.method ?? from?.method ?? "GET");
      this.#headers = new Headers(init.headers ?? from?.headers);
      this.#params = from?.params ?? {};
      if (this.body !== null && ["GET", "HEAD"].includes(this.#method) && !from) {
        throw new TypeError(`a ${this.#method} request has no body`);
      }
      if (type && !this.#headers.has("content-type")) this.#headers.set("content-type", type);
    }

    get url() {
      return this.#url;
    }

    get method() {
      return this.#method;
    }

    get headers() {
      return this.#headers;
    }

    /** Of the route: `[id].js` gives `request.params.id`. */
    get params() {
      return this.#params;
    }

    clone() {
      return new Request(this);
    }
  }

  const statusTexts = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content",
    301: "Moved Permanently", 302: "Found", 303: "See Other", 304: "Not Modified",
    307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized",
    403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 406: "Not Acceptable",
    409: "Conflict", 410: "Gone", 413: "Content Too Large", 415: "Unsupported Media Type",
    422: "Unprocessable Content", 429: "Too Many Requests", 500: "Internal Server Error",
    501: "Not Implemented", 502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
  };

  class Response extends Body {
    #status;
    #statusText;
    #headers;
    #url = "";
    #type = "default";

    constructor(body = null, init = {}, source) {
      const [content, type] = extractBody(body);
      super(content);
      init ??= {};
      if (source === given) {
        [this.#status, this.#url, this.#type] = [init.status, init.url, init.type];
      } else {
        this.#status = init.status === undefined ? 200 : Math.trunc(Number(init.status));
        if (!(this.#status >= 200 && this.#status <= 599)) {
          throw new RangeError(`a response's status is from 200 to 599, not ${init.status}`);
        }
      }
      this.#statusText = String(init.statusText ?? statusTexts[this.#status] ?? "");
      this.#headers = new Headers(init.headers);
      // Upstream gives text no type, and so wws says text/html.
      if (type && typeof body === "object" && !this.#headers.has("content-type")) {
        this.#headers.set("content-type", type);
      }
    }

    static json(value, init = {}) {
      const text = stringify(value);
      if (text === undefined) throw new TypeError("this value has no JSON");
      const response = new Response(text, init);
      if (!response.headers.has("content-type")) {
        response.headers.set("content-type", "application/json");
      }
      return response;
    }

    // Status and body are upstream's, and so is a location that may be relative.
    static redirect(url, status = 307) {
      if (![301, 302, 303, 307, 308].includes(status)) {
        throw new RangeError(`${status} is no status of a redirect`);
      }
      return new Response(`Redirecting to ${url}`, { status, headers: { location: url } });
    }

    static error() {
      return new Response(null, { status: 0, url: "", type: "error" }, given);
    }

    get status() {
      return this.#status;
    }

    get statusText() {
      return this.#statusText;
    }

    get ok() {
      return this.#status >= 200 && this.#status <= 299;
    }

    get headers() {
      return this.#headers;
    }

    get type() {
      return this.#type;
    }

    get url() {
      return this.#url;
    }

    get redirected() {
      return false;
    }

    clone() {
      const { status, statusText, headers, url, type } = this;
      return new Response(this.body, { status, statusText, headers, url, type }, given);
    }
  }

  class AbortSignal {
    #reason;
    #aborted = false;
    #listeners = [];
    onabort = null;

    constructor(source) {
      if (source !== given) throw new TypeError("signals are made by AbortController");
    }

    static abort(reason) {
      const controller = new AbortController();
      controller.abort(reason);
      return controller.signal;
    }

    static timeout(delay) {
      const controller = new AbortController();
      const abort = () => controller.abort(new DOMException("the time is up", "TimeoutError"));
      addTimer(abort, delay, [], false);
      return controller.signal;
    }

    static any(signals) {
      const controller = new AbortController();
      for (const signal of signals) {
        if (signal.aborted) controller.abort(signal.reason);
        else signal.addEventListener("abort", () => controller.abort(signal.reason));
      }
      return controller.signal;
    }

    static fire(signal, reason) {
      if (signal.#aborted) return;
      signal.#aborted = true;
      signal.#reason = reason;
      const event = { type: "abort", target: signal };
      for (const listener of [signal.onabort, ...signal.#listeners]) {
        try {
          listener?.call(signal, event);
        } catch (error) {
          complain("Uncaught in a listener: ", error);
        }
      }
    }

    get aborted() {
      return this.#aborted;
    }

    get reason() {
      return this.#reason;
    }

    throwIfAborted() {
      if (this.#aborted) throw this.#reason;
    }

    addEventListener(type, listener) {
      if (type === "abort" && typeof listener === "function") this.#listeners.push(listener);
    }

    removeEventListener(type, listener) {
      this.#listeners = this.#listeners.filter((other) => other !== listener);
    }
  }

  const { fire } = AbortSignal;
  delete AbortSignal.fire;

  class AbortController {
    #signal = new AbortSignal(given);

    get signal() {
      return this.#signal;
    }

    abort(reason = new DOMException("it was aborted", "AbortError")) {
      fire(this.#signal, reason);
    }
  }

  // As http.wit numbers them.
  const methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"];
  const failures = [
    "invalid request", "invalid request body", "invalid response body", "not allowed",
    "internal error", "timeout", "redirect loop",
  ];
  const NOT_ALLOWED = 3;

  function send(request) {
    const method = methods.indexOf(request.method);
    if (method < 0) throw new TypeError(`fetch cannot send ${request.method} requests`);
    const { protocol, host: name } = new URL(request.url);
    if (protocol !== "http:" && protocol !== "https:") {
      throw new TypeError(`fetch knows http and https, not ${protocol}`);
    }
    const { body } = request;
    const content = typeof body === "string" ? host.encode(body) : body && body.buffer;
    const uri = request.url.replace(/#.*$/s, "");
    const [status, headers, data] = host.send(method, uri, [...request.headers].flat(), content);
    if (typeof headers === "string") {
      let message = `${request.method} ${protocol}//${name}: ${failures[status]}: ${headers}`;
      if (status === NOT_ALLOWED) {
        message += " (see allowed_hosts, allowed_methods and allow_http of"
          + " [features.http_requests] in the worker's TOML)";
      }
      throw new TypeError(message);
    }
    const pairs = [];
    for (let i = 0; i < headers.length; i += 2) pairs.push([headers[i], headers[i + 1]]);
    const init = { status, url: uri, type: "basic", headers: new Headers(pairs, given) };
    return new Response(data ?? null, init, given);
  }

  async function fetch(input, init) {
    // Nothing can abort it later: the worker stands still while the host sends.
    init?.signal?.throwIfAborted();
    return send(new Request(input, init));
  }

  // Timers. Nothing runs beside a worker: they are run in their order while its answer is awaited.

  let timers = [];
  let lastTimer = 0;

  function addTimer(call, delay, values, interval) {
    if (typeof call !== "function") throw new TypeError("a timer needs a function");
    delay = Math.min(Math.max(Number(delay) || 0, interval ? 1 : 0), 2 ** 31 - 1);
    const timer = { id: ++lastTimer, due: host.monotonic() + delay, delay, call, values, interval };
    timers.push(timer);
    return timer.id;
  }

  const setTimeout = (call, delay, ...values) => addTimer(call, delay, values, false);
  const setInterval = (call, delay, ...values) => addTimer(call, delay, values, true);
  const clearTimeout = (id) => {
    timers = timers.filter((timer) => timer.id !== id);
  };

  function runTimer() {
    const next = timers.reduce((first, timer) => (timer.due < first.due ? timer : first));
    host.sleep(next.due - host.monotonic());
    if (next.interval) next.due = host.monotonic() + next.delay;
    else clearTimeout(next.id);
    try {
      next.call(...next.values);
    } catch (error) {
      complain("Uncaught in a timer: ", error);
    }
  }

  function queueMicrotask(call) {
    if (typeof call !== "function") throw new TypeError("queueMicrotask needs a function");
    Promise.resolve().then(() => {
      try {
        call();
      } catch (error) {
        complain("Uncaught in a microtask: ", error);
      }
    });
  }

  // The rest

  function copyObject(value, seen) {
    if (value instanceof Date) return new Date(value);
    if (value instanceof RegExp) return new RegExp(value.source, value.flags);
    if (value instanceof ArrayBuffer) return value.slice(0);
    if (ArrayBuffer.isView(value)) {
      const buffer = clone(value.buffer, seen);
      const size = value instanceof DataView ? value.byteLength : value.length;
      return new value.constructor(buffer, value.byteOffset, size);
    }
    if (value instanceof Error) {
      const types = { EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };
      const copy = new (types[value.name] ?? Error)(value.message);
      define(copy, { stack: value.stack });
      return copy;
    }
    if (value instanceof Promise || value instanceof WeakMap || value instanceof WeakSet) {
      throw new DOMException("this object cannot be cloned", "DataCloneError");
    }
    return null;
  }

  function clone(value, seen) {
    if (typeof value === "function" || typeof value === "symbol") {
      throw new DOMException(`a ${typeof value} cannot be cloned`, "DataCloneError");
    }
    if (typeof value !== "object" || value === null) return value;
    if (seen.has(value)) return seen.get(value);
    let copy = copyObject(value, seen);
    if (copy) {
      seen.set(value, copy);
      return copy;
    }
    if (value instanceof Map) {
      seen.set(value, (copy = new Map()));
      value.forEach((item, key) => copy.set(clone(key, seen), clone(item, seen)));
    } else if (value instanceof Set) {
      seen.set(value, (copy = new Set()));
      value.forEach((item) => copy.add(clone(item, seen)));
    } else {
      seen.set(value, (copy = Array.isArray(value) ? new Array(value.length) : {}));
      for (const key of Object.keys(value)) copy[key] = clone(value[key], seen);
    }
    return copy;
  }

  const structuredClone = (value) => clone(value, new Map());

  let timeOrigin = 0;
  const performance = {
    get timeOrigin() {
      return Date.now() - performance.now();
    },
    now: () => host.monotonic() - timeOrigin,
  };

  // The key-value store: what the host gave, and gets back whole. Its values are strings.
  let store = Object.create(null);

  function storedText(value) {
    return typeof value === "object" ? stringify(value) : String(value);
  }

  const Cache = {
    get: (key) => store[key],
    set(key, value) {
      if (value === undefined || value === null) delete store[key];
      else store[host.wellFormed(String(key))] = host.wellFormed(storedText(value));
    },
    has: (key) => key in store,
    delete: (key) => delete store[key],
    keys: () => Object.keys(store),
  };

  const process = { env: {} };

  // The worker's handler

  let handler = null;
  let isListener = false;

  function addEventListener(type, listener) {
    if (typeof listener !== "function") throw new TypeError("a listener is a function");
    if (String(type) !== "fetch") {
      host.write(2, `addEventListener: there are fetch events only, not ${type}\n`);
      return;
    }
    handler = listener;
    isListener = true;
  }

  // Promises beside the response that the worker wants to see through.
  let awaited = 0;

  function waitUntil(promise) {
    awaited++;
    const done = () => void awaited--;
    Promise.resolve(promise).then(done, (error) => {
      done();
      complain("Uncaught in waitUntil: ", error);
    });
  }

  async function respond(request) {
    if (!isListener) {
      return handler(request, process.env, { waitUntil, passThroughOnException() {} });
    }
    let response;
    let responded = false;
    const event = {
      type: "fetch",
      request,
      waitUntil,
      respondWith(answer) {
        if (responded) throw new DOMException("respondWith was called before", "InvalidStateError");
        responded = true;
        response = answer;
        // Its rejection is told of as the handler's.
        if (answer instanceof Promise) answer.catch(() => {});
      },
    };
    await handler(event);
    if (!responded) throw new TypeError("the listener did not call event.respondWith(response)");
    return response;
  }

  function incoming(input) {
    const pairs = input.headers_list ?? Object.entries(input.headers ?? {});
    let body = input.body ?? "";
    if (input.base64) body = new Uint8Array(host.fromBase64(body) ?? 0);
    return new Request(
      input.url,
      { method: input.method, params: input.params ?? {}, body, headers: new Headers(pairs, given) },
      given,
    );
  }

  const rejections = new Map();

  function printRejections() {
    rejections.forEach((reason) => complain("Unhandled rejection: ", reason));
    rejections.clear();
  }

  let outcome = null;

  function setEnvironment(environment) {
    process.env = environment;
    for (const name of Object.keys(environment)) {
      // As upstream, vars are constants of the worker, unless it would lose something by them.
      if (!(name in globalThis)) {
        Object.defineProperty(globalThis, name, {
          value: environment[name], configurable: true, enumerable: true, writable: true,
        });
      }
    }
  }

  /** Compile as a script or a module; of two errors throw the one for what it looks like. */
  function compile(name, source) {
    const kinds = [false, true];
    if (/^\s*(export|import)\b/m.test(source)) kinds.reverse();
    try {
      host.compile(name, source, kinds[0]);
    } catch (error) {
      try {
        host.compile(name, source, kinds[1]);
      } catch {
        throw error;
      }
      return kinds[1];
    }
    return kinds[0];
  }

  function takeDefault(exported) {
    if (typeof exported === "function") {
      handler = exported;
    } else if (typeof exported?.fetch === "function") {
      handler = (...values) => exported.fetch(...values);
    } else {
      return;
    }
    isListener = false;
  }

  define(globalThis, {
    ...{ self: globalThis, global: globalThis },
    ...{ DOMException, TextEncoder, TextDecoder, URL, URLSearchParams, Headers, Request, Response },
    ...{ addEventListener, atob, btoa, clearInterval: clearTimeout, clearTimeout, console, crypto },
    ...{ fetch, performance, process, queueMicrotask, setInterval, setTimeout, structuredClone },
    ...{ AbortController, AbortSignal, Blob, Cache, File, FormData },
  });

  return {
    /** Evaluate a worker; false if it has no handler, or failed, and then it is said why. */
    load(name, source, environment) {
      setEnvironment(environment);
      timeOrigin = host.monotonic();
      try {
        if (source === null) throw new SyntaxError(`${name} is no UTF-8`);
        source = source.replace(/^\ufeff/, "");
        const isModule = compile(name, source);
        const result = host.run();
        if (isModule) takeDefault(result.default);
      } catch (error) {
        complain("Uncaught ", error);
        return false;
      }
      return true;
    },

    /** Say, when the jobs of `load` have run, whether there is a handler. */
    loaded() {
      printRejections();
      if (handler) return true;
      host.write(
        2,
        'the worker has no handler: call addEventListener("fetch", listener), or export default'
          + " a function or an object that has the method fetch\n",
      );
      return false;
    },

    rejected(promise, reason, isHandled) {
      if (isHandled) rejections.delete(promise);
      else rejections.set(promise, reason);
    },

    /** Begin to answer the request. */
    dispatch(input) {
      timeOrigin = host.monotonic();
      store = Object.assign(Object.create(null), input.kv);
      respond(incoming(input)).then(
        (response) => {
          outcome = { response };
        },
        (error) => {
          outcome = { error, failed: true };
        },
      );
    },

    /** Go on when all jobs have run; 0 if there is nothing to go on with. */
    advance() {
      if (outcome && (outcome.failed || !awaited)) return 0;
      if (timers.length) {
        runTimer();
        return 1;
      }
      outcome ??= { error: new Error("the handler's promise never settles"), failed: true };
      return 0;
    },

    /** Return the response's body and the JSON of the rest; null if it failed: it is said why. */
    finish() {
      printRejections();
      const { response, error, failed } = outcome;
      if (failed) {
        complain("Uncaught ", error);
        return null;
      }
      if (!(response instanceof Response)) {
        complain("the handler's answer is no Response: ", response);
        return null;
      }
      if (response.type === "error") {
        host.write(2, "the handler answered with Response.error()\n");
        return null;
      }
      const { body, status, headers } = response;
      const rest = stringify({ status, headers, kv: store });
      return [body === null ? "" : typeof body === "string" ? body : body.buffer, rest];
    },
  };
});
