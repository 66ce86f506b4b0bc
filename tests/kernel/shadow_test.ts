import { assertEquals } from "@std/assert";
import { listedTables } from "../../lib/kernel/shadow.ts";

Deno.test("the tables of a listing of nft, each with its own text", () => {
  const guard = `table inet guard {
	comment "a } in it"
	chain input {
		type filter hook input priority filter; policy accept;
		iif "lo" accept
	}
}
`;
  const tables = listedTables(
    `# Warning: table ip nat is managed by iptables-nft, do not touch!
table ip nat {
	chain POSTROUTING {
	}
}
${guard}table ip6 empty {
}
table inet firewalld { # progname firewalld
	flags owner,persist
}
`,
  );
  assertEquals([...tables.keys()], ["ip nat", "inet guard", "ip6 empty", "inet firewalld"]);
  assertEquals(tables.get("inet guard"), guard);
  assertEquals(tables.get("ip6 empty"), "table ip6 empty {\n}\n");
  assertEquals(listedTables("").size, 0);
});
