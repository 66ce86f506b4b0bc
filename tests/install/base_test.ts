/** Where the runtime base comes from, with servers and packages of the test's own. */
import { assert, assertEquals, assertMatch, assertRejects, assertThrows } from "@std/assert";
import { join } from "@std/path";
import { deflateRawSync } from "node:zlib";
import {
  baseFrom,
  BuildError,
  DENO_VERSION,
  firstBytes,
  official,
  onlyFile,
  type Pin,
  sha256,
  type Source,
} from "../../tools/base.ts";
import { ROOT, run, temporaryFolder } from "./support.ts";

const bytesOf = (text: string) => new TextEncoder().encode(text);
const BASE = bytesOf("the base that everything is tested with");
const OTHER = bytesOf("a base that somebody serves under its name");
const PIN: Pin = { size: BASE.length, sha256: sha256(BASE) };

/** A package registry that has these bytes, or does not answer. */
const npm = (bytes: Uint8Array | undefined): Source => ({
  name: "npm",
  read: () => bytes ? Promise.resolve(bytes) : Promise.reject(new BuildError("could not be fetched")),
});

/** A zip archive of one file `denort`, as the official server has it. */
function zip(content: Uint8Array, method: 0 | 8): Uint8Array {
  const data = method === 8 ? deflateRawSync(content) : content, name = bytesOf("denort");
  const out = new Uint8Array(30 + 46 + 22 + 2 * name.length + data.length);
  const view = new DataView(out.buffer), directory = 30 + name.length + data.length;
  const sizes = (at: number) => {
    view.setUint32(at, data.length, true);
    view.setUint32(at + 4, content.length, true);
  };
  view.setUint32(0, 0x04034b50, true);
  view.setUint16(8, method, true);
  sizes(18);
  view.setUint16(26, name.length, true);
  out.set(name, 30);
  out.set(data, 30 + name.length);
  view.setUint32(directory, 0x02014b50, true);
  view.setUint16(directory + 10, method, true);
  sizes(directory + 20);
  view.setUint16(directory + 28, name.length, true);
  out.set(name, directory + 46);
  const end = directory + 46 + name.length;
  view.setUint32(end, 0x06054b50, true);
  view.setUint16(end + 8, 1, true);
  view.setUint16(end + 10, 1, true);
  view.setUint32(end + 12, 46 + name.length, true);
  view.setUint32(end + 16, directory, true);
  return out;
}

/** A release server that answers every path with these bytes; `asked` is what it was asked for. */
function releaseServer(body: Uint8Array): { address: string; asked: string[] } & AsyncDisposable {
  const asked: string[] = [];
  const server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen: () => {} }, (request) => {
    asked.push(new URL(request.url).pathname);
    return body.length === 0 ? new Response("", { status: 404 }) : new Response(new Uint8Array(body));
  });
  return {
    address: `http://127.0.0.1:${server.addr.port}`,
    asked,
    [Symbol.asyncDispose]: () => server.shutdown(),
  };
}

Deno.test("base: a release server that would serve other bytes is not asked where the package registry answers", async () => {
  using folder = temporaryFolder();
  await using server = releaseServer(zip(OTHER, 8));
  const sources = [npm(BASE), official(server.address)];
  const { file, text } = await baseFrom(sources, { arch: "x86_64", pin: PIN, cache: folder.path });
  assertEquals(await Deno.readFile(file), BASE);
  assertEquals(text, `Deno ${DENO_VERSION} for x86_64, SHA-256 ${PIN.sha256}, pinned`);
  assertEquals(server.asked, []);
});

Deno.test("base: other bytes are refused, whoever serves them, and nothing is kept", async () => {
  using folder = temporaryFolder();
  await using server = releaseServer(zip(OTHER, 8));
  const from = (...sources: Source[]) => baseFrom(sources, { arch: "x86_64", pin: PIN, cache: folder.path });
  const refused = `refused: ${OTHER.length} bytes of SHA-256 ${sha256(OTHER)}, expected ${PIN.size} bytes of SHA-256`;
  const error = await assertRejects(() => from(npm(undefined), official(server.address)), BuildError);
  assertMatch(error.message, /^no runtime base for x86_64; npm: could not be fetched; http:/);
  assert(error.message.includes(refused), error.message);
  assertEquals(server.asked, [`/release/v${DENO_VERSION}/denort-x86_64-unknown-linux-gnu.zip`]);
  await assertRejects(() => from(npm(OTHER)), BuildError, refused);
  assertEquals([...Deno.readDirSync(folder.path)], []);
});

Deno.test("base: where no registry answers, the release server's is taken if it is the pinned one", async () => {
  for (const method of [0, 8] as const) {
    using folder = temporaryFolder();
    await using server = releaseServer(zip(BASE, method));
    const sources = [npm(undefined), official(server.address)];
    const { file } = await baseFrom(sources, { arch: "x86_64", pin: PIN, cache: folder.path });
    assertEquals(await Deno.readFile(file), BASE);
  }
});

Deno.test("base: without a pin the digest of what the server gave is said", async () => {
  using folder = temporaryFolder();
  await using server = releaseServer(zip(OTHER, 8));
  const { text } = await baseFrom([official(server.address)], { arch: "aarch64", cache: folder.path });
  assertEquals(text, `Deno ${DENO_VERSION} for aarch64, SHA-256 ${sha256(OTHER)}, not pinned`);
  assertEquals(server.asked, [`/release/v${DENO_VERSION}/denort-aarch64-unknown-linux-gnu.zip`]);
});

Deno.test("base: what was kept is asked for no more, and fetched again when it was changed", async () => {
  using folder = temporaryFolder();
  const take = (...sources: Source[]) => baseFrom(sources, { arch: "x86_64", pin: PIN, cache: folder.path });
  const { file } = await take(npm(BASE));
  assertEquals((await take()).file, file);
  await Deno.writeFile(file, OTHER);
  await assertRejects(() => take(), BuildError, "no runtime base");
  await take(npm(BASE));
  assertEquals(await Deno.readFile(file), BASE);
});

Deno.test("base: what a server says instead of an archive is told", async () => {
  using folder = temporaryFolder();
  const cases = [["", "answers 404"], ["<html>a proxy's page</html>", "not a zip archive"]] as const;
  for (const [body, words] of cases) {
    await using server = releaseServer(bytesOf(body));
    await assertRejects(
      () => baseFrom([official(server.address)], { arch: "aarch64", cache: folder.path }),
      BuildError,
      words,
    );
  }
  assertThrows(() => onlyFile(zip(BASE, 8).subarray(0, -1)), BuildError, "not a zip archive");
});

Deno.test("base: the part of a file in front of another's program is cut out", async () => {
  using folder = temporaryFolder();
  const path = join(folder.path, "file");
  await Deno.writeTextFile(path, "the base|and the program behind it");
  assertEquals(await firstBytes(path, 8), bytesOf("the base"));
  assertEquals((await firstBytes(path, 1000)).length, 34);
});

Deno.test("no other version of Deno is named anywhere", async () => {
  const { stdout } = await run("grep", [
    "-rnEI",
    "--exclude-dir=.git",
    "--exclude-dir=.cache",
    "--exclude-dir=dist",
    "[Dd]eno(/| v?|-)[0-9]+\\.[0-9]+",
    ".",
  ], { cwd: ROOT });
  const others = stdout.split("\n").filter((line) => line.replaceAll(/\b2\.4\.2\b/g, "").match(/[Dd]eno(\/| v?|-)\d/));
  assertEquals(others, []);
});
