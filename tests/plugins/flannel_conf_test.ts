import { assertEquals, assertThrows } from "@std/assert";
import { confText, delegateConf, type FlannelConf, parseSubnetEnv, readSubnetEnv } from "../../plugins/flannel/conf.ts";
import { CniError } from "../../lib/cni/error.ts";

const FILE = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
const env = (text: string) => parseSubnetEnv(text, "/run/flannel/subnet.env");
const conf = (more: Partial<FlannelConf> = {}): FlannelConf => ({
  name: "mynet",
  cniVersion: "",
  delegate: undefined,
  ipam: undefined,
  runtimeConfig: undefined,
  args: undefined,
  ...more,
});

const texts: readonly [promise: string, conf: Partial<FlannelConf>, file: string, text: string][] = [
  [
    "little",
    {},
    FILE,
    '{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"mynet","type":"bridge"}',
  ],
  [
    "everything",
    {
      name: "fn",
      cniVersion: "1.0.0",
      runtimeConfig: { portMappings: [{ hostPort: 8080 }] },
      ipam: { type: "my", dataDir: "/x<y", routes: [{ dst: "10.96.0.0/12", gw: "10.1.17.20", foo: 1, priority: 5 }] },
      delegate: { hairpinMode: true, isDefaultGateway: true, mtu: 1400 },
    },
    "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n",
    '{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":false,"ipam":{"dataDir":"/x\\u003cy","ranges":[[{"subnet":"10.1.17.0/24"}],[{"subnet":"fc00::/64"}]],' +
    '"routes":[{"dst":"10.96.0.0/12","gw":"10.1.17.20","priority":5},{"dst":"10.1.0.0/16"},{"dst":"192.168.0.0/16"},{"dst":"fc00::/48"}],"type":"my"},' +
    '"isDefaultGateway":true,"isGateway":true,"mtu":1400,"name":"fn","runtimeConfig":{"portMappings":[{"hostPort":8080}]},"type":"bridge"}',
  ],
  [
    "what the delegate has, also null and 0",
    { delegate: { mtu: 0, ipMasq: null, isGateway: false, cniVersion: "0.3.1", runtimeConfig: { a: 1 } } },
    FILE,
    '{"cniVersion":"0.3.1","ipMasq":null,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":false,"mtu":0,"name":"mynet","runtimeConfig":{"a":1},"type":"bridge"}',
  ],
  [
    "another type, without isGateway",
    { delegate: { type: "ipvlan", master: "eth0" }, ipam: { ranges: [["x"]], subnet: "10.2.0.0/24", routes: null } },
    FILE.replace("true", "false"),
    '{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"subnet":"10.2.0.0/24","type":"host-local"},"master":"eth0","mtu":1472,"name":"mynet","type":"ipvlan"}',
  ],
  [
    "args, and no route twice",
    {
      args: { cni: { mac: "02:00:00:00:00:01" } },
      ipam: { routes: [{ dst: "10.1.0.0/16" }, { dst: "10.3.0.0/16", scope: 0, advmss: 5, mtu: 7 }] },
    },
    FILE,
    '{"args":{"cni":{"mac":"02:00:00:00:00:01"}},"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"},{"dst":"10.3.0.0/16","mtu":7,"advmss":5,"scope":0}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"mynet","type":"bridge"}',
  ],
  [
    "IPv6 alone",
    {},
    "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n",
    '{"ipMasq":true,"ipam":{"ranges":[[{"subnet":"fc00::/64"}]],"routes":[{"dst":"fc00::/48"}],"type":"host-local"},"isGateway":true,"mtu":1472,"name":"mynet","type":"bridge"}',
  ],
];

for (const [promise, given, file, text] of texts) {
  Deno.test(`flannel makes a configuration of ${promise}`, () => {
    assertEquals(confText(delegateConf(conf(given), env(file))), text);
  });
}

const refused: readonly [promise: string, given: Partial<FlannelConf>, msg: string][] = [
  [
    "a type that is no text",
    { delegate: { type: 5 } },
    "'delegate' dictionary, if present, must have (string) 'type' field",
  ],
  [
    "a name in the delegate",
    { delegate: { name: "x" } },
    "'delegate' dictionary must not have 'name' field, it'll be set by flannel",
  ],
  [
    "an ipam in the delegate",
    { delegate: { ipam: {} } },
    "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel",
  ],
  [
    "routes that are no list",
    { ipam: { routes: "x" } },
    "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: json: cannot unmarshal string into Go value of type []types.Route",
  ],
  [
    "a route to nowhere",
    { ipam: { routes: [{ dst: "bad" }] } },
    "failed to assemble Delegate IPAM: failed to read IPAM routes: failed to parse ipam.routes: invalid CIDR address: bad",
  ],
];

for (const [promise, given, msg] of refused) {
  Deno.test(`flannel refuses ${promise}`, () => {
    assertEquals(assertThrows(() => delegateConf(conf(given), env(FILE)), CniError).msg, msg);
  });
}

const files: readonly [promise: string, file: string, what: Partial<ReturnType<typeof env>>][] = [
  ["drops carriage returns", FILE.replaceAll("\n", "\r\n"), { mtu: 1472, ipMasq: true, subnet: "10.1.17.0/24" }],
  [
    "passes comments, blanks and unknown keys over",
    `# x\n\nFLANNEL_X\nFLANNEL_BACKEND=vxlan\n FLANNEL_MTU=5\n${FILE}`,
    { mtu: 1472 },
  ],
  ["takes the last of two lines", `${FILE}FLANNEL_MTU=0\nFLANNEL_NETWORK=10.5.0.0/16`, {
    mtu: 0,
    networks: ["10.5.0.0/16"],
  }],
  ["knows one spelling of true", FILE.replace("true", "TRUE"), { ipMasq: false }],
  ["takes an empty IPMASQ for false", FILE.replace("true", ""), { ipMasq: false }],
  ["masks host bits", FILE.replace("10.1.0.0/16", "10.1.2.3/16"), { networks: ["10.1.0.0/16"] }],
  ["takes the other family, and doubts it", FILE.replace("10.1.0.0/16", "fc00::/48"), {
    networks: ["fc00::/48"],
    doubts: ["FLANNEL_NETWORK of /run/flannel/subnet.env holds fc00::/48, of the other family"],
  }],
];

for (const [promise, file, what] of files) {
  Deno.test(`the subnet file: flannel ${promise}`, () => {
    const found = env(file);
    for (const [key, value] of Object.entries(what)) assertEquals(found[key as keyof typeof found], value);
  });
}

const broken: readonly [file: string, what: string][] = [
  [
    "",
    "/run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
  ],
  [FILE.replace(/FLANNEL_MTU.*\n/, ""), "/run/flannel/subnet.env is missing FLANNEL_MTU"],
  [FILE.replace("10.1.17.1/24", "x"), "invalid CIDR address: x"],
  [FILE.replace("10.1.17.1/24", " 10.1.17.1/24"), "invalid CIDR address:  10.1.17.1/24"],
  [FILE.replace("10.1.0.0/16", "10.1.0.0/16, 10.2.0.0/16"), "invalid CIDR address:  10.2.0.0/16"],
  [FILE.replace("1472", "abc"), 'strconv.ParseUint: parsing "abc": invalid syntax'],
  [FILE.replace("1472", "-1"), 'strconv.ParseUint: parsing "-1": invalid syntax'],
  [FILE.replace("1472", '"1472"'), 'strconv.ParseUint: parsing "\\"1472\\"": invalid syntax'],
  [FILE.replace("1472", "4294967296"), 'strconv.ParseUint: parsing "4294967296": value out of range'],
  [`${FILE}FLANNEL_MTU\n`, 'invalid line "FLANNEL_MTU"'],
];

for (const [file, what] of broken) {
  Deno.test(`the subnet file is refused: ${what}`, () => {
    const error = assertThrows(() => env(file), CniError);
    assertEquals(
      error.msg,
      `failed to load flannel 'subnet.env' file: ${what}. Check the flannel pod log for this node.`,
    );
  });
}

Deno.test("a subnet file that is not there is told in the words that people search for", () => {
  const error = assertThrows(() => readSubnetEnv("/run/nowhere/subnet.env", 50), CniError);
  assertEquals(
    [error.code, error.msg],
    [
      50,
      "failed to load flannel 'subnet.env' file: open /run/nowhere/subnet.env: no such file or directory. Check the flannel pod log for this node.",
    ],
  );
});
