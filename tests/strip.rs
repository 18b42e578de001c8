//! `assets/strip.rs`, which makes what the hub serves as `/tabcast.js`: what it takes away, what it leaves,
//! and what it refuses.

#[path = "../assets/strip.rs"]
mod strip;

use std::process::Command;

use serde_json::json;
use strip::{classic, strip};

#[track_caller]
fn assert_stripped(cases: &[(&str, &str)]) {
    for (source, expected) in cases {
        assert_eq!(strip(source).as_deref(), Ok(*expected), "{source}");
        assert_eq!(strip(expected).as_deref(), Ok(*expected), "stripped again: {source}");
    }
}

#[test]
fn comments_blank_lines_and_needless_white_space_are_taken_away() {
    assert_stripped(&[
        ("", ""),
        (" \n\t", ""),
        ("// nothing else", ""),
        ("/* nothing else */", ""),
        ("\u{feff}// a mark\na", "a"),
        ("// first\n\n\na();\n\n// last\n", "a();"),
        ("a(); // after\r\nb();\r\n", "a();b();"),
        ("f(a, /* the second */ b);", "f(a,b);"),
        ("/** @type {string} */ const a = 'b';", "const a='b';"),
        ("/* one *//* two */a/***/;", "a;"),
        ("if (a) {\n    b();\n  } else {\n    c();\n  }\n", "if(a){b();}else{c();}"),
        ("const f = async ({ a, ...b }) => [a, ...b];", "const f=async({a,...b})=>[a,...b];"),
        ("x = !a && !b ? -c : d ** 2;", "x=!a&&!b? -c:d**2;"),
        (
            "class A {\n  #b = 1;\n\n  get c() { return this.#b; }\n}",
            "class A{#a=1;get c(){return this.#a;}}",
        ),
        ("é = 'ü' // ö", "é='ü'"),
    ]);
}

#[test]
fn what_only_looks_like_a_comment_stays() {
    assert_stripped(&[
        ("a = 'http://x' + \"/* no */\";", "a='http://x'+\"/* no */\";"),
        ("a = 'it\\'s // no' // yes", "a='it\\'s // no'"),
        ("a = '\\\\' // yes", "a='\\\\'"),
        ("a = 'one \\\n   // two'", "a='one \\\n   // two'"),
        ("a = `// no\n\n   /* no */ \\` // no`  // yes", "a=`// no\n\n   /* no */ \\` // no`"),
        ("a = `$ { } \\${ // no }`", "a=`$ { } \\${ // no }`"),
        ("a = `${ b /* yes */ } // no ${ `${ c } // no` /* yes */ }`", "a=`${b} // no ${`${c} // no`}`"),
        ("a = `${ { b: '}' }.b /* yes */ } // no`", "a=`${{b:'}'}.b} // no`"),
        ("a = / \\/\\/ [/*] \\] */g // yes", "a=/ \\/\\/ [/*] \\] */g"),
        ("a(/[//]/, /'/ /* yes */, /\"/)", "a(/[//]/,/'/,/\"/)"),
        ("a = [/\\\\/, /`/, /[\\]/*]/]", "a=[/\\\\/,/`/,/[\\]/*]/]"),
        ("a => /re/u .test(b)", "a=>/re/u .test(b)"),
        ("a ? /b/ : !/c/", "a?/b/ :!/c/"),
        ("/re/.test(a)", "/re/.test(a)"),
    ]);
}

#[test]
fn a_slash_that_divides_begins_no_regular_expression() {
    assert_stripped(&[
        ("a / b // c / d", "a/b"),
        ("(a + b) / 2 // '", "(a+b)/2"),
        ("a[0] / a[1] // '", "a[0]/a[1]"),
        ("a++ / b-- / c // '", "a++ /b-- /c"),
        ("'a' / `b` / 0x1e / 1.5e-3 / .5 / 1. / 1_000n // '", "'a'/`b`/0x1e/1.5e-3/ .5/1./1_000n"),
        ("this / a.return / b?.of / #if // '", "this/a.return/b?.of/#a"),
        ("a / /b/g // '", "a/ /b/g"),
        ("f(a) / 2 // '", "f(a)/2"),
        ("0xe+/'/.exec(a) // '", "0xe+/'/.exec(a)"),
    ]);
}

#[test]
fn tokens_that_would_merge_stay_apart() {
    assert_stripped(&[
        ("return  a", "return a"),
        ("return/* */a", "return a"),
        ("a + + b - - c", "a+ +b- -c"),
        ("a + ++b", "a+ ++b"),
        ("1 .toFixed()", "1 .toFixed()"),
        ("a = b ? .5 : c", "a=b? .5:c"),
        ("a < !--b", "a< !--b"),
        ("/a/ in b", "/a/ in b"),
        ("async  *a() {}", "async*a(){}"),
        ("'a'  in  b", "'a'in b"),
    ]);
}

#[test]
fn a_line_break_stays_where_it_may_end_a_statement() {
    assert_stripped(&[
        ("a\nb", "a\nb"),
        ("a // one\n\n  // two\n  b", "a\nb"),
        ("return /*\n*/ a", "return\na"),
        ("a\u{2028}b", "a\nb"),
        ("a = {}\nb = []\nc = 'd'\n`e`", "a={}\nb=[]\nc='d'\n`e`"),
        ("a\n++b", "a\n++b"),
        ("f(\n  a,\n  b,\n);\ng()\n", "f(a,b,);g()"),
        ("a\n  .b()\n  .c();", "a\n.b()\n.c();"),
    ]);
}

#[test]
fn private_names_become_short_and_stay_different() {
    let names: Vec<String> = (0..1_000).map(|number| format!("#name{number}")).collect();
    let stripped = strip(&format!("{};{}", names.join(";"), names.join(";"))).unwrap();
    let mut short: Vec<&str> = stripped.split(';').collect();
    assert_eq!(short.len(), 2_000);
    assert_eq!(short[..1_000], short[1_000..]);
    assert_eq!([short[0], short[25], short[26], short[27], short[701]], ["#a", "#z", "#aa", "#ba", "#zz"]);
    short.sort_unstable();
    short.dedup();
    assert_eq!(short.len(), 1_000);
    assert_stripped(&[("#x in a && a.#x + '#x' + `#x` + /#x/", "#a in a&&a.#a+'#x'+`#x`+/#x/")]);
}

#[test]
fn what_takes_a_parser_is_refused() {
    for (source, reason) in [
        ("a = {}\n/b/g", "line 2: `/` after `}` may divide, or begin a regular expression"),
        ("function f() {} /b/g", "line 1: `/` after `}` may divide, or begin a regular expression"),
        ("a();\nif (a) /b/.test(c)", "line 2: `/` after `)` may divide, or begin a regular expression"),
        ("for await (a of b) /c/g", "line 1: `/` after `)` may divide, or begin a regular expression"),
        ("return /a/", "line 1: `/` after `return` may divide, or begin a regular expression"),
        ("of / a", "line 1: `/` after `of` may divide, or begin a regular expression"),
        ("\\u0061 = 1", "line 1: '\\\\' begins no token"),
        ("a = 'b\n'", "line 1: a string has no end"),
        ("a = 'b\\'", "line 1: a string has no end"),
        ("a = `b", "line 1: a template has no end"),
        ("a = `${b`", "line 1: a template has no end"),
        ("a = /b\n/", "line 1: a regular expression has no end"),
        ("a = /[/", "line 1: a regular expression has no end"),
        ("\n/* a", "line 2: a comment has no end"),
        ("f(a]", "line 1: `]` closes nothing"),
        ("a }", "line 1: `}` closes nothing"),
        ("f(a", "line 1: a bracket has no end"),
        ("a\u{1}b", "line 1: '\\u{1}' begins no token"),
    ] {
        assert_eq!(strip(source).unwrap_err(), reason, "{source}");
    }
}

#[test]
fn a_stripped_program_does_what_it_did() {
    // Each is evaluated by Node.js, and its value compared with that of the stripped program.
    let programs = [
        "let a = 8, b = 2, g = 2; [a / b / g, a /* */ / b, a++ / 2, (a) / b, [a][0] / b]",
        "[/[/]'/g.source, 'a//b'.split(/\\//), `${'`'}${`/*${1 + +1}*/`}`, 1 .toFixed(2), 5 - -5]",
        "(() => {\n  return\n  1;\n})() === undefined",
        "let a = 1\nlet b = 2\nlet c = a\n++b\n;[a, b, c]",
        "const f = (a) => {\n  if (a) { return 'yes'; }\n  return 'no';\n};\n[f(1), f(0)]",
        "class A { #x = 1; static #xx = 2; get value() { return this.#x + A.#xx; } }\nnew A().value",
        "class A { #x; static has(o) { return #x in o; } }\n[A.has(new A()), A.has({})]",
        "const o = { in: 4, of: 2, async *g() {}, get  x() { return 1; } }; [o.in / o.of / 1, o.x]",
        "((a, ...b) => [...b, a])(1, 2, .5)",
        "a: for (const x of [1, 2]) { for (;;) { if (x) continue a; } }\ntypeof null + typeof -1 + void 0",
        "'one \\\n   two'.length + `  \n\n  // three  `.length",
        "[1, , 3,].length",
        "let x = 3; [x-- > 0, x + + x, x - - x, !x, x < !x]",
    ];
    let pairs: Vec<_> =
        programs.iter().map(|program| [(*program).to_owned(), strip(program).unwrap()]).collect();
    let script = "
        const run = (program) => (0, eval)(`{${program}\\n}`);
        const pairs = JSON.parse(process.argv[1]);
        console.log(JSON.stringify(pairs.map((pair) => pair.map(run))));";
    let output =
        Command::new("node").args(["-e", script, &json!(pairs).to_string()]).output().expect("node runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let values: Vec<[serde_json::Value; 2]> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(values.len(), programs.len());
    for ([value, stripped], program) in values.iter().zip(&programs) {
        assert_eq!(stripped, value, "{program}");
        assert!(!value.is_null(), "{program}");
    }
}

#[test]
fn a_classic_script_is_the_module_with_a_global_function_instead_of_an_export() {
    let module = "const at=import.meta.url;export function connect(a){return[at,a];}";
    let script = classic(module).unwrap();
    // A page's own names stay its own.
    assert!(script.starts_with("(()=>{'use strict';") && script.ends_with("})();"), "{script}");
    assert!(script.contains("const at=url;function connect(a){return[at,a];}"), "{script}");
    for (module, missing) in [
        ("export function connect(){}", "import.meta.url"),
        ("import.meta.url;import.meta.url;export function connect(){}", "import.meta.url"),
        ("import.meta.url", "export function connect("),
    ] {
        assert_eq!(classic(module).unwrap_err(), format!("`{missing}` has to be there once"));
    }
    let program = format!(
        "globalThis.document = {{ currentScript: {{ src: 'http://hub/a/io.js?x=/y' }} }};
         {script}
         console.log(JSON.stringify([io(1), io.connect(2), typeof connect, typeof at]));"
    );
    let output = Command::new("node").args(["-e", &program]).output().expect("node runs");
    let [printed, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let at = "http://hub/a/tabcast.js";
    assert_eq!(
        printed.trim_end(),
        json!([[at, 1], [at, 2], "undefined", "undefined"]).to_string(),
        "{errors}"
    );
}
