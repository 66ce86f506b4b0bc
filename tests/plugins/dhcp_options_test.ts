import { assertEquals, assertThrows } from "@std/assert";
import { decode } from "../../lib/cni/decode.ts";
import { CniError, code } from "../../lib/cni/error.ts";
import { hex } from "../../plugins/dhcp/lease.ts";
import { clientId, clientOptions, type DhcpConf, dhcpKeys, identifierOption } from "../../plugins/dhcp/options.ts";

function conf(ipam: unknown): DhcpConf {
  const { ipam: decoded } = decode(dhcpKeys, { ipam }, "");
  if (!decoded) throw new Error("no ipam");
  return decoded;
}

const text = (bytes: Uint8Array | undefined) => bytes && new TextDecoder().decode(bytes);

function sent(provide: unknown, args = ""): Record<string, string | undefined> {
  const { send } = clientOptions(conf({ provide }), args);
  return Object.fromEntries([...send].map(([number, bytes]) => [number, text(bytes)]));
}

const asked = (request: unknown) => clientOptions(conf({ request }), "").ask;

Deno.test("dhcp options go out by name or number, byte by byte", () => {
  assertEquals(sent(null), {});
  assertEquals(
    sent([
      { option: "host-name", value: "web" },
      { option: "vendor-class-identifier", value: "a\\x00" },
      { option: "user-class", value: "ü" },
      { option: "51", value: "\u0000\u0000\u0001," },
      { option: "dhcp-client-identifier", value: "me" },
    ]),
    { 12: "web", 60: "a\\x00", 77: "ü", 51: "\u0000\u0000\u0001,", 61: "me" },
  );
  assertEquals(
    sent([{ option: "12", value: "a" }, { option: "host-name", value: "b" }]),
    { 12: "b" },
    "the later one counts",
  );
  assertEquals(sent([{ option: "12" }, { option: "0", value: "x" }, { option: "255", value: "x" }]), {});
});

Deno.test("dhcp options from CNI_ARGS replace what is configured", () => {
  const provide = [{ option: "12", value: "left", fromArg: "HOST" }];
  for (
    const [args, value] of [
      ["", "left"],
      ["HOST=web", "web"],
      ["A;HOST=a=b=c;IgnoreUnknown=1", "a=b=c"],
      ["host=web", "left"],
      ["HOST", "left"],
      ["HOST=", ""],
      [" HOST=web", "left"],
    ] as const
  ) assertEquals(sent(provide, args), { 12: value }, args);
  assertEquals(sent([{ option: "12", fromArg: "HOST" }]), {});
});

Deno.test("dhcp options hold 255 bytes, and never the protocol's own", () => {
  assertEquals(sent([{ option: "77", value: "x".repeat(255) }])["77"]?.length, 255);
  const refused: readonly (readonly [provide: unknown, args: string, msg: string])[] = [
    [{ option: "12", value: "x".repeat(256) }, "", `value too long for option "12": "${"x".repeat(256)}"`],
    [{ option: "12", value: "ü".repeat(128) }, "", `value too long for option "12": "${"ü".repeat(128)}"`],
    [
      { option: "12", value: "v", fromArg: "K" },
      `K=${"x".repeat(256)}`,
      'value too long for option "12" from CNI_ARGS "K": "v"',
    ],
    [
      { option: "bogus", value: "x" },
      "",
      'Can not parse option "bogus": Can not parse option: strconv.ParseUint: parsing "bogus": invalid syntax',
    ],
    [
      { option: "256", value: "x" },
      "",
      'Can not parse option "256": Can not parse option: strconv.ParseUint: parsing "256": value out of range',
    ],
    [
      { value: "x" },
      "",
      'Can not parse option "": Can not parse option: strconv.ParseUint: parsing "": invalid syntax',
    ],
    [
      { option: "toString", value: "x" },
      "",
      'Can not parse option "toString": Can not parse option: strconv.ParseUint: parsing "toString": invalid syntax',
    ],
    [{ option: "53", value: "x" }, "", 'option "53" cannot be provided'],
    [{ option: "55", value: "x" }, "", 'option "55" cannot be provided'],
  ];
  for (const [provide, args, msg] of refused) {
    const error = assertThrows(() => sent([provide], args), CniError);
    assertEquals([error.code, error.msg], [code.config, msg]);
  }
});

Deno.test("dhcp asks for what is listed, then for router and mask", () => {
  assertEquals(asked(null), [3, 1]);
  assertEquals(asked([{ option: "121" }, { option: "6" }]), [121, 6, 3, 1]);
  assertEquals(asked([{ option: "routers" }, { option: "121" }, { option: "121" }]), [3, 121, 1]);
  assertEquals(asked([{ option: "121", skipDefault: true }, { option: "6" }]), [121, 6]);
  assertEquals(asked([{ option: "121" }, { skipDefault: true }]), [121]);
  assertEquals(asked([{ skipDefault: true }]), [1, 3, 15, 6], "the reference's library has a list of its own");
  assertEquals(asked([{ option: "0" }, { option: "255" }]), [3, 1]);
  assertThrows(() => asked([{ option: "x" }]), CniError, 'Can not parse option "x"');
});

Deno.test("dhcp client identifier is a zero byte and the attachment, cut after 254 bytes", () => {
  const owner = { containerId: "cid1", network: "mynet", ifName: "eth0" };
  const none = clientOptions(conf({}), "");
  assertEquals(hex(identifierOption(owner, none)), "00636964312f6d796e65742f65746830");
  const long = { containerId: "c".repeat(200), network: "n".repeat(60), ifName: "eth0" };
  assertEquals(text(clientId(long)), `${"c".repeat(200)}/${"n".repeat(53)}`);
  assertEquals(identifierOption(long, none).length, 255);
  const own = clientOptions(conf({ provide: [{ option: "61", value: "me" }] }), "");
  assertEquals(text(identifierOption(owner, own)), "me");
});
