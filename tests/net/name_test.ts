import { assert, assertEquals, assertMatch, assertNotEquals, assertThrows } from "@std/assert";
import {
  chainName,
  dnatComment,
  iptablesComment,
  nftAttachmentHash,
  nftNetworkHash,
  nftRuleComment,
  vethName,
} from "../../lib/net/name.ts";

const LONG_ID = "0123456789abcdef".repeat(4);

function bytes(text: string): number {
  return new TextEncoder().encode(text).length;
}

Deno.test("chain names are the reference's", () => {
  const table: [string, string, string, string][] = [
    ["test", "1234", "", "CNI-2bbe0c48b91a7d1b8a6753a8"],
    ["testalongnamethatdoesnotmakesense", "1234", "", "CNI-374f33fe84ab0ed84dcdebe3"],
    ["net1", "ctr1", "", "CNI-85373d34c6846b6c53ee2e7f"],
    ["test", "1234", "PREFIX-", "CNI-PREFIX-2bbe0c48b91a7d1b8"],
    ["mynet", "ctr-0001", "DN-", "CNI-DN-e4c76feec97a77ba32cd9"],
  ];
  for (const [network, containerId, infix, chain] of table) {
    assertEquals(chainName({ network, containerId }, infix), chain);
  }
});

Deno.test("chain names are 28 characters long whatever the ID", () => {
  for (const containerId of ["a", LONG_ID, "x".repeat(1000)]) {
    assertEquals(chainName({ network: "net1", containerId }).length, 28);
    assertEquals(chainName({ network: "net1", containerId }, "SOME-").length, 28);
  }
});

Deno.test("chain names join network and container without a separator, as the reference does", () => {
  assertEquals(chainName({ network: "ab", containerId: "c" }), chainName({ network: "a", containerId: "bc" }));
});

Deno.test("an infix that leaves no room for the hash is a mistake of the caller", () => {
  assertThrows(() => chainName({ network: "a", containerId: "b" }, "x".repeat(24)), RangeError);
  assertEquals(chainName({ network: "a", containerId: "b" }, "x".repeat(23)).length, 28);
});

Deno.test("iptables comments quote both names", () => {
  assertEquals(iptablesComment({ network: "net1", containerId: "ctr1" }), 'name: "net1" id: "ctr1"');
  assertEquals(dnatComment({ network: "mynet", containerId: "ctr-0001" }), 'dnat name: "mynet" id: "ctr-0001"');
});

Deno.test("a long DNAT comment is cut to 253 bytes and three dots", () => {
  const whole = dnatComment({ network: "n".repeat(100), containerId: "c".repeat(135) });
  assertEquals(bytes(whole), 255);
  assert(whole.endsWith('c"'));
  const cut = dnatComment({ network: "n".repeat(100), containerId: "c".repeat(136) });
  assertEquals(bytes(cut), 256);
  assert(cut.endsWith("ccc..."));
});

Deno.test("nft hashes are the reference's", () => {
  assertEquals(nftNetworkHash("unit-test"), "6fd94d501e58f0aa");
  assertEquals(nftNetworkHash("net1"), "8e48f37d5de60467");
  assertEquals(nftNetworkHash("alternate"), "82783ef24bdc7036");
  const table: [string, string, string, string][] = [
    ["unit-test", "eth0", "one", "6fd94d501e58f0aa-287fc69eff0574a2"],
    ["unit-test", "eth0", "two", "6fd94d501e58f0aa-d750b2c8f0f25d5f"],
    ["alternate", "net1", "three", "82783ef24bdc7036-acb19d111858e348"],
    ["net1", "eth0", "ctr1", "8e48f37d5de60467-7883a6f9ce71eedb"],
  ];
  for (const [network, ifName, containerId, hash] of table) {
    assertEquals(nftAttachmentHash({ network, ifName, containerId }), hash);
  }
});

Deno.test("nft comments name the attachment", () => {
  assertEquals(
    nftRuleComment({ network: "net1", ifName: "eth0", containerId: "ctr1" }),
    "8e48f37d5de60467-7883a6f9ce71eedb, net: net1, if: eth0, id: ctr1",
  );
});

Deno.test("nft comments are cut at 128 bytes and keep the whole hash", () => {
  for (const ifName of ["eth0", "éééééé", "日本語日本"]) {
    for (let n = 8; n < 80; n++) {
      const attachment = { network: "n".repeat(n), ifName, containerId: LONG_ID };
      const comment = nftRuleComment(attachment);
      assert(bytes(comment) <= 128, comment);
      assert(bytes(comment) >= 126, comment);
      assert(comment.startsWith(nftAttachmentHash(attachment) + ", net: n"));
      assert(!comment.includes("\ufffd"), comment);
    }
  }
});

Deno.test("nft comments hold no double quote", () => {
  const comment = nftRuleComment({ network: "net1", ifName: 'e"th0', containerId: "ctr1" });
  assert(comment.endsWith(", net: net1, if: eth0, id: ctr1"));
});

Deno.test("vethName is a link name that the attachment alone decides", () => {
  const attachment = { network: "net1", containerId: LONG_ID, ifName: "eth0" };
  assertMatch(vethName(attachment), /^veth[0-9a-f]{8}$/);
  assertEquals(vethName(attachment), vethName({ ...attachment }));
  assertNotEquals(vethName(attachment), vethName({ ...attachment, ifName: "eth1" }));
  assertNotEquals(vethName(attachment), vethName({ ...attachment, network: "net2" }));
  assertNotEquals(
    vethName({ network: "ab", containerId: "c", ifName: "eth0" }),
    vethName({ network: "a", containerId: "bc", ifName: "eth0" }),
  );
  assertEquals(new Set([0, 1, 2, 3].map((attempt) => vethName(attachment, attempt))).size, 4);
});
