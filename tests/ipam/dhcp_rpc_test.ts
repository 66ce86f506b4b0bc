import { assertEquals, assertRejects } from "@std/assert";
import {
  callDaemon,
  type CmdArgs,
  gobFromResult,
  greetDaemon,
  resultFromGob,
  RpcError,
  serve,
} from "../../lib/ipam/dhcp_rpc.ts";
import type { Result } from "../../lib/cni/types.ts";
import { listenUnix, SocketError } from "../../lib/kernel/unix_socket.ts";

const ARGS: CmdArgs = {
  ContainerID: "c",
  Netns: "/run/netns/x",
  IfName: "eth0",
  Args: "",
  Path: "/opt/cni/bin",
  NetnsOverride: "",
  StdinData: new TextEncoder().encode(`{"name":"${"n".repeat(300)}"}`),
};

const RESULT: Result = {
  ips: [{ address: "192.168.1.55/24", gateway: "192.168.1.1" }],
  routes: [
    { dst: "0.0.0.0/0", gw: "192.168.1.1", priority: 77 },
    { dst: "10.8.0.0/16", gw: "0.0.0.0", scope: 253 },
  ],
  dns: { nameservers: ["1.1.1.1"], domain: "d", search: ["a", "b"] },
};

/** A daemon with these methods on a socket of its own, for as long as `work` takes. */
async function withDaemon(
  methods: Parameters<typeof serve>[1],
  work: (path: string, notes: string[]) => Promise<void>,
): Promise<void> {
  const folder = Deno.makeTempDirSync();
  const notes: string[] = [];
  const acceptor = listenUnix(`${folder}/s`);
  const served = serve(acceptor, methods, (note) => notes.push(note));
  try {
    await work(`${folder}/s`, notes);
  } finally {
    acceptor.close();
    await served;
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("dhcp rpc: results get across whole", async () => {
  assertEquals(resultFromGob(gobFromResult(RESULT)), RESULT);
  const asked: CmdArgs[] = [];
  const methods = {
    "DHCP.Allocate": (args: CmdArgs) => (asked.push(args), Promise.resolve(RESULT)),
    "DHCP.Release": () => Promise.resolve(undefined),
  };
  await withDaemon(methods, async (path) => {
    assertEquals(await callDaemon(path, "DHCP.Allocate", { args: ARGS, limitMs: 5000 }), RESULT);
    assertEquals(asked, [ARGS]);
    assertEquals(await callDaemon(path, "DHCP.Release", { args: ARGS, limitMs: 5000 }), undefined);
    await greetDaemon(path, 5000);
  });
});

Deno.test("dhcp rpc: errors arrive with their advice", async () => {
  const methods = { "DHCP.Allocate": () => Promise.reject(new RpcError("no more tries", "eth0: ask\nagain")) };
  await withDaemon(methods, async (path) => {
    const call = (method: string) => callDaemon(path, method, { args: ARGS, limitMs: 5000 });
    const error = await assertRejects(() => call("DHCP.Allocate"), RpcError);
    assertEquals([error.message, error.details], ["no more tries", "eth0: ask\nagain"]);
    await assertRejects(() => call("DHCP.Other"), RpcError, "rpc: can't find method DHCP.Other");
    await assertRejects(() => call("toString"), RpcError, "rpc: can't find method toString");
  });
});

Deno.test({
  name: "dhcp rpc: a daemon that does not answer keeps nobody for ever",
  // The daemon's side of the connection, which still owes an answer.
  sanitizeResources: false,
  fn: async () => {
    await withDaemon({ "DHCP.Allocate": () => new Promise(() => {}) }, async (path) => {
      await assertRejects(
        () => callDaemon(path, "DHCP.Allocate", { args: ARGS, limitMs: 20 }),
        RpcError,
        "no answer within",
      );
    });
  },
});

Deno.test("dhcp rpc: nobody there, or somebody else", async () => {
  const folder = Deno.makeTempDirSync();
  await assertRejects(() => greetDaemon(`${folder}/s`, 1000), SocketError, "no such file or directory");
  const acceptor = listenUnix(`${folder}/s`);
  const answered = (async () => {
    for (const answer of ["HTTP/1.1 404 Not Found\r\n\r\n", ""]) {
      const channel = await acceptor.accept();
      await channel.read();
      await channel.write(new TextEncoder().encode(answer));
      channel.close();
    }
  })();
  await assertRejects(() => greetDaemon(`${folder}/s`, 5000), RpcError, "unexpected HTTP response: 404 Not Found");
  await assertRejects(() => greetDaemon(`${folder}/s`, 5000), RpcError, "unexpected EOF");
  await answered;
  acceptor.close();
  await assertRejects(() => greetDaemon(`${folder}/s`, 1000), SocketError, "connection refused");
  Deno.removeSync(folder, { recursive: true });
});

Deno.test("dhcp rpc: clients that talk nonsense disturb nobody", async () => {
  await withDaemon({ "DHCP.Release": () => Promise.resolve(undefined) }, async (path) => {
    const say = async (text: string) => {
      const connection = await Deno.connect({ transport: "unix", path });
      await connection.write(new TextEncoder().encode(text));
      await connection.closeWrite();
      const answer = await new Response(connection.readable).text();
      return answer.split("\r\n")[0];
    };
    assertEquals(await say("GET /_goRPC_ HTTP/1.0\n\n"), "HTTP/1.0 405 Method Not Allowed");
    assertEquals(await say("CONNECT /debug/rpc HTTP/1.0\n\n"), "HTTP/1.0 404 Not Found");
    assertEquals(await say("x".repeat(9000)), "");
    assertEquals(await say(""), "");
    assertEquals(await say("CONNECT /_goRPC_ HTTP/1.0\n\n\u0005garbage"), "HTTP/1.0 200 Connected to Go RPC\n\n");
    assertEquals(await callDaemon(path, "DHCP.Release", { args: ARGS, limitMs: 5000 }), undefined);
  });
});

Deno.test("dhcp rpc: answers that make no address are refused", () => {
  const address = (IP: number[], Mask: number[]) => ({
    IPs: [{ Address: { IP: Uint8Array.from(IP), Mask: Uint8Array.from(Mask) } }],
  });
  assertEquals(resultFromGob(address([10, 0, 0, 1], [255, 0, 0, 0])).ips, [{ address: "10.0.0.1/8" }]);
  // Go keeps IPv4 addresses in 16 bytes too.
  const mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1];
  assertEquals(resultFromGob(address(mapped, [255, 255, 0, 0])).ips, [{ address: "10.0.0.1/16" }]);
  for (const [ip, mask] of [[[], [255]], [[10, 0, 0], [255, 0, 0]], [[10, 0, 0, 1], [255, 0, 255, 0]]] as const) {
    let failed = false;
    try {
      resultFromGob(address([...ip], [...mask]));
    } catch (error) {
      failed = error instanceof RpcError;
    }
    assertEquals(failed, true, `${ip}/${mask}`);
  }
});
