use serde_json::{Value, json};

use super::super::structural::Structural;
use super::*;

/// A schema of `spec` with rules, compiled.
fn compiled(spec: Value) -> Result<Structural, Vec<String>> {
    let schema = json!({ "type": "object", "properties": { "spec": spec } });
    let mut schema = Structural::read(&schema, "s").expect("a schema");
    match compile(&mut schema, "s") {
        Ok(()) => Ok(schema),
        Err(errors) => Err(lines(&errors)),
    }
}

fn lines(errors: &[FieldError]) -> Vec<String> {
    let line = |error: &FieldError| format!("{}: {}", error.field, error.message);
    errors.iter().map(line).collect()
}

fn properties() -> Value {
    json!({
        "a": { "type": "integer" }, "b": { "type": "integer" }, "n": { "type": "number" },
        "s": { "type": "string" }, "t": { "type": "string", "format": "date-time" }, "d": { "type": "string", "format": "duration" },
        "flag": { "type": "boolean" }, "any": { "x-kubernetes-preserve-unknown-fields": true },
        "port": { "x-kubernetes-int-or-string": true }, "a-b": { "type": "string" }, "namespace": { "type": "string" },
        "list": { "type": "array", "items": { "type": "string" } },
        "numbers": { "type": "array", "items": { "type": "integer" } },
        "map": { "type": "object", "additionalProperties": { "type": "string" } },
        "object": { "type": "object", "properties": { "x": { "type": "string" } } },
    })
}

fn with_rule(rule: &str) -> Result<Structural, Vec<String>> {
    compiled(
        json!({ "type": "object", "properties": properties(), "x-kubernetes-validations": [{ "rule": rule }] }),
    )
}

fn check(rule: &str, spec: Value) -> Vec<String> {
    let schema = with_rule(rule).unwrap_or_else(|errors| panic!("{rule}: {errors:?}"));
    lines(&validate(&schema, &json!({ "spec": spec }), None))
}

fn spec() -> Value {
    json!({ "a": 1, "b": 2, "n": 1, "s": "Hello, World", "t": "2026-01-02T03:04:05Z", "d": "1h30m", "flag": true,
        "any": { "k": [1, 2] }, "port": "http", "a-b": "dash", "namespace": "ns", "list": ["a", "b", "c"],
        "numbers": [1, 2, 3], "map": { "k": "v" }, "object": { "x": "y" } })
}

#[test]
fn rules_that_people_write_hold() {
    for rule in [
        "self.a < self.b",
        "self.n == 1.0 && self.n + 0.5 > self.n",
        "self.a + self.b * 3 - 1 == 6 && self.b / 2 == 1 && self.b % 2 == 0 && -self.a == -1",
        "has(self.a) && !has(self.any.none) && has(self.object.x)",
        "self.s.startsWith('Hello') && self.s.endsWith('World') && self.s.contains(', ') && self.s.matches('^H.*d$')",
        "self.s.lowerAscii() == 'hello, world' && self.s.upperAscii() == 'HELLO, WORLD'",
        "self.s.split(', ') == ['Hello', 'World'] && self.list.join('-') == 'a-b-c'",
        "self.s.replace('l', 'L', 2) == 'HeLLo, World' && ' x '.trim() == 'x'",
        "self.s.substring(7) == 'World' && self.s.substring(0, 5) == 'Hello' && self.s.charAt(4) == 'o'",
        "self.s.indexOf('o') == 4 && self.s.lastIndexOf('o') == 8 && self.s.indexOf('z') == -1 && self.s.indexOf('o', 5) == 8",
        "'%s has %d of %.2f'.format([self.s, self.a, self.n]) == 'Hello, World has 1 of 1.00'",
        "self.s.find('[A-Z]') == 'H' && self.s.findAll('[A-Z]') == ['H', 'W']",
        "size(self.list) == 3 && self.list.size() == 3 && 'a' in self.list && !('z' in self.list) && 'k' in self.map",
        "self.list.all(x, size(x) == 1) && self.list.exists(x, x == 'b') && self.list.exists_one(x, x == 'c')",
        "self.list.map(x, x + x) == ['aa', 'bb', 'cc'] && self.numbers.filter(n, n > 1) == [2, 3]",
        "self.numbers.map(n, n > 1, n * 10) == [20, 30]",
        "self.numbers.isSorted() && self.numbers.sum() == 6 && self.numbers.min() == 1 && self.numbers.max() == 3",
        "self.list.indexOf('b') == 1 && self.map.all(k, self.map[k] == 'v') && self.map['k'] == 'v' && self.map.k == 'v'",
        "self.any.k[1] == 2 && self.list[0] == 'a'",
        "type(self.port) == string && (self.flag ? true : false)",
        "self.a__dash__b == 'dash' && self.__namespace__ == 'ns'",
        "self.t < timestamp('2027-01-01T00:00:00Z') && self.t.getFullYear() == 2026 && self.t.getMonth() == 0",
        "self.d == duration('90m') && self.d.getMinutes() == 90 && self.t + self.d > self.t",
        "quantity('1Gi').isGreaterThan(quantity('500Mi')) && quantity('1').add(quantity('500m')).compareTo(quantity('1.5')) == 0",
        "isQuantity('10m') && !isQuantity('ten') && quantity('2').asInteger() == 2",
        "url('https://example.com:80/p?q=1').getHost() == 'example.com:80' && isURL('/x') && !isURL('x')",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('x') && ip('127.0.0.1').isLoopback() && ip.isCanonical('::1')",
        "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.0.0.0/8').prefixLength() == 8",
        "!format.dns1123Label().validate('my-name').hasValue() && format.dns1123Label().validate('-').hasValue()",
        "self.?a.orValue(5) == 1 && self.any.?none.orValue('x') == 'x' && optional.of(1).hasValue() && self.map[?'z'].orValue('d') == 'd'",
        "sets.contains(self.list, ['a']) && sets.intersects(self.list, ['a', 'z']) && sets.equivalent([1, 2], [2, 1, 1])",
        "int('5') == 5 && string(5) == '5' && double(self.a) == 1.0 && uint(1) == 1u && bool('true')",
        "self.a == 1 || self.a / 0 == 1",
        "self.numbers.exists(n, 6 / (n - 1) == 3) && !self.numbers.all(n, 6 / (n - 1) == 7)",
        "r'\\d' == '\\\\d' && \"\"\"x\"\"\" == 'x' && b'ab' == bytes('ab')",
    ] {
        assert_eq!(check(rule, spec()), [""; 0], "{rule}");
    }
}

#[test]
fn what_cannot_work_is_refused_when_the_definition_is_made() {
    for (rule, detail) in [
        (
            "self.none == 1",
            "compilation failed: ERROR: <input>:1:5: undefined field 'none'\n | self.none == 1\n | ....^",
        ),
        (
            "other.x",
            "undeclared reference to 'other' (in container '')",
        ),
        (
            "self.s == 1",
            "found no matching overload for '_==_' applied to '(string, int)'",
        ),
        (
            "self.s + 1 == 'a'",
            "found no matching overload for '_+_' applied to '(string, int)'",
        ),
        (
            "self.s.startsWith(1)",
            "found no matching overload for 'startsWith' applied to 'string.(int)'",
        ),
        ("self.a", "cel expression must evaluate to a bool"),
        (
            "self.s.noSuch()",
            "undeclared reference to 'noSuch' (in container '')",
        ),
        ("self.list.all(k, v, true)", "undeclared reference to"),
        (
            "self.a.all(x, true)",
            "expression of type 'int' cannot be range of a comprehension",
        ),
        (
            "authorizer.path('/').check('get').allowed()",
            "undeclared reference to 'authorizer'",
        ),
        (
            "self.s.matches('(')",
            "program instantiation failed: error parsing regexp: unclosed group: `(`",
        ),
        ("self.a <", "compilation failed: ERROR: <input>:1:"),
        ("Foo{a: 1} == 1", "undeclared reference to 'Foo'"),
        ("self.object.y == ''", "undefined field 'y'"),
        (
            "self.s[0] == 'a'",
            "type 'string' does not support indexing",
        ),
    ] {
        let errors = with_rule(rule).expect_err(rule);
        assert!(
            errors[0].starts_with(
                "s.properties[spec].x-kubernetes-validations[0].rule: Invalid value: {"
            ),
            "{errors:?}"
        );
        assert!(errors[0].contains(detail), "{rule}: {errors:?}");
    }
}

#[test]
fn a_broken_rule_says_what_its_author_wrote() {
    let with = |rule: Value| {
        let schema = json!({ "type": "object", "properties": properties(), "x-kubernetes-validations": [rule] });
        let schema = compiled(schema).expect("a rule");
        lines(&validate(&schema, &json!({ "spec": spec() }), None))
    };
    for (rule, line) in [
        (
            json!({ "rule": "self.a > 5" }),
            "spec: Invalid value: \"object\": failed rule: self.a > 5",
        ),
        (
            json!({ "rule": "self.a > 5", "message": " too small " }),
            "spec: Invalid value: \"object\": too small",
        ),
        (
            json!({ "rule": "self.a > 5", "messageExpression": "'a is ' + string(self.a)" }),
            "spec: Invalid value: \"object\": a is 1",
        ),
        (
            json!({ "rule": "self.a > 5", "message": "m", "messageExpression": "self.any.none" }),
            "spec: Invalid value: \"object\": m",
        ),
        (
            json!({ "rule": "self.a > 5", "message": "m", "reason": "FieldValueForbidden" }),
            "spec: Forbidden: m",
        ),
        (
            json!({ "rule": "self.a > 5", "message": "m", "reason": "FieldValueRequired", "fieldPath": ".a" }),
            "spec.a: Required value: m",
        ),
        (
            json!({ "rule": "self.a > 5", "reason": "FieldValueDuplicate" }),
            "spec: Duplicate value: \"object\"",
        ),
        (
            json!({ "rule": "self.any.none == 1" }),
            "spec: Invalid value: \"object\": no such key: none evaluating rule: self.any.none == 1",
        ),
        (
            json!({ "rule": "self.list[9] == 'a'" }),
            "spec: Invalid value: \"object\": index out of bounds: 9 evaluating rule: self.list[9] == 'a'",
        ),
        (
            json!({ "rule": "self.a / 0 == 1" }),
            "spec: Invalid value: \"object\": division by zero evaluating rule: self.a / 0 == 1",
        ),
        (
            json!({ "rule": "self.port > 5" }),
            "spec: Invalid value: \"object\": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self.port > 5",
        ),
    ] {
        assert_eq!(with(rule.clone()), [line], "{rule}");
    }
}

#[test]
fn texts_of_rules_are_checked() {
    let errors = |rule: Value| {
        let schema = json!({ "type": "object", "properties": properties(), "x-kubernetes-validations": [rule] });
        let schema = Structural::read(&schema, "s").expect("a schema");
        let mut errors = Vec::new();
        check_texts(&schema, "s", &mut errors);
        lines(&errors)
    };
    let at = "s.x-kubernetes-validations[0]";
    for (rule, line) in [
        (
            json!({ "rule": " " }),
            format!("{at}.rule: Required value: rule is not specified"),
        ),
        (
            json!({ "rule": "true", "message": " " }),
            format!("{at}.message: Invalid value: \" \": message must be non-empty if specified"),
        ),
        (
            json!({ "rule": "true &&\ntrue" }),
            format!(
                "{at}.message: Required value: message must be specified if rule contains line breaks"
            ),
        ),
        (
            json!({ "rule": "true", "messageExpression": " " }),
            format!(
                "{at}.messageExpression: Required value: messageExpression must be non-empty if specified"
            ),
        ),
        (
            json!({ "rule": "true", "reason": "No" }),
            format!(
                "{at}.reason: Unsupported value: \"No\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\""
            ),
        ),
        (
            json!({ "rule": "true", "fieldPath": ".none" }),
            format!("{at}.fieldPath: Invalid value: \".none\": fieldPath must be a valid path"),
        ),
    ] {
        assert_eq!(errors(rule.clone()), [line], "{rule}");
    }
}

#[test]
fn transition_rules_run_where_the_old_value_is_known() {
    let schema = compiled(json!({ "type": "object", "properties": {
        "fixed": { "type": "string", "x-kubernetes-validations": [{ "rule": "self == oldSelf", "message": "is immutable" }] },
        "items": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
            "type": "object", "required": ["k"], "properties": { "k": { "type": "string" }, "v": { "type": "integer",
                "x-kubernetes-validations": [{ "rule": "self >= oldSelf", "message": "may only grow" }] } } } },
        "once": { "type": "string", "x-kubernetes-validations": [
            { "rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true, "message": "set once" }] },
    } }))
    .expect("rules");
    let run = |new: Value, old: Option<Value>| {
        let old = old.map(|old| json!({ "spec": old }));
        lines(&validate(&schema, &json!({ "spec": new }), old.as_ref()))
    };
    let new =
        json!({ "fixed": "b", "items": [{ "k": "y", "v": 1 }, { "k": "x", "v": 1 }], "once": "z" });
    assert_eq!(run(new.clone(), None), [""; 0]);
    let old = json!({ "fixed": "a", "items": [{ "k": "x", "v": 2 }], "once": "y" });
    assert_eq!(
        run(new, Some(old)),
        [
            "spec.fixed: Invalid value: \"string\": is immutable",
            "spec.items[1].v: Invalid value: \"integer\": may only grow",
            "spec.once: Invalid value: \"string\": set once",
        ]
    );
}

#[test]
fn old_self_is_refused_where_items_do_not_correspond() {
    let errors = compiled(json!({ "type": "object", "properties": { "l": { "type": "array", "items": { "type": "string",
        "x-kubernetes-validations": [{ "rule": "self == oldSelf" }] } } } }))
    .expect_err("atomic");
    assert_eq!(
        errors,
        [
            "s.properties[spec].properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[spec].properties[l]"
        ]
    );
}

#[test]
fn a_value_that_did_not_change_may_break_a_new_rule() {
    let schema = with_rule("self.a > 5").expect("a rule");
    let old = json!({ "spec": { "a": 1 } });
    assert_eq!(lines(&validate(&schema, &old, Some(&old))), [""; 0]);
    let new = json!({ "spec": { "a": 2 } });
    assert_eq!(validate(&schema, &new, Some(&old)).len(), 1);
}

#[test]
fn rules_of_endless_cost_are_cut_short() {
    let numbers: Vec<i64> = (0..2000).collect();
    let exceeded = |rule: &str| {
        let errors = check(
            rule,
            json!({ "numbers": numbers, "s": "x".repeat(100_000) }),
        );
        let last = errors.last().unwrap_or_else(|| panic!("{rule} holds"));
        assert!(
            last.contains("actual cost limit exceeded"),
            "{rule}: {last}"
        );
    };
    exceeded("self.numbers.all(a, self.numbers.all(b, self.numbers.all(c, a + b + c >= 0)))");
    exceeded(
        "self.numbers.all(a, self.numbers.all(b, self.numbers.all(c, a + b + c >= 0))) || true",
    );
    let chain = ".map(x, x + x)".repeat(30);
    exceeded(&format!("[self.s]{chain}.size() == 1"));
    exceeded(&format!(
        "{}.size() == 1",
        (0..6).fold("self.s".to_owned(), |s, _| format!(
            "{s}.replace('x', {})",
            "'xxxxxxxxxx'"
        ))
    ));
    exceeded("self.numbers.map(n, self.s).map(s, s.replace('x', self.s)).size() > 0");
    exceeded("self.numbers.map(a, self.numbers.map(b, [a, b])).size() > 0");
}

#[test]
fn texts_that_would_break_the_parser_are_refused() {
    for rule in [
        format!("{}1{} == 1", "(".repeat(30_000), ")".repeat(30_000)),
        format!("{}true", "!".repeat(20_000)),
        format!("1{} > 0", "+1".repeat(10_000)),
        format!("1{} > 0", "+1".repeat(1_500)),
        format!("self{}", ".a".repeat(1_900)),
        format!("{}true", "[".repeat(45)),
        format!("{}true{}", "true ? ".repeat(900), " : true".repeat(900)),
        "'".to_owned(),
        "\u{0}".to_owned(),
        "has(1)".to_owned(),
        "a.".repeat(50),
        "1 in".to_owned(),
        "x".repeat(40 << 10),
    ] {
        let start = &rule[..rule.len().min(20)];
        assert!(with_rule(&rule).is_err(), "{start}");
    }
    let long = format!("self.a == 1{}", " || self.a == 1".repeat(150));
    assert_eq!(check(&long, spec()), [""; 0]);
}

#[test]
fn rules_of_the_gateway_api_and_others_hold() {
    let listener = json!({ "type": "object", "properties": { "name": { "type": "string" }, "port": { "type": "integer" },
        "protocol": { "type": "string" }, "hostname": { "type": "string" }, "tls": { "type": "object", "properties": {
            "mode": { "type": "string" }, "certificateRefs": { "type": "array", "items": { "type": "object",
                "x-kubernetes-preserve-unknown-fields": true } } } } } });
    let rules = [
        "self.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)",
        "self.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)",
        "self.all(l1, self.exists_one(l2, l1.name == l2.name))",
        "self.all(l1, self.exists_one(l2, l1.port == l2.port && l1.protocol == l2.protocol && (has(l1.hostname) && has(l2.hostname) ? l1.hostname == l2.hostname : !has(l1.hostname) && !has(l2.hostname))))",
        "self.filter(l, has(l.tls)).size() <= 1 && size(self.map(l, l.port)) == 2",
        "(has(self[0].hostname) ? 1 : 0) + (has(self[0].tls) ? 1 : 0) <= 1",
        "[has(self[0].hostname), has(self[0].tls)].exists_one(x, x) || self.exists(l, l.?hostname.orValue('').startsWith('a'))",
        "self[?0].?hostname.hasValue() || !self.exists(l, l.port <= 0 || l.port > 65535)",
        "self.map(l, l.name).all(n, !format.dns1123Label().validate(n).hasValue())",
    ];
    let rules: Vec<Value> = rules.iter().map(|rule| json!({ "rule": rule })).collect();
    let schema =
        compiled(json!({ "type": "array", "items": listener, "x-kubernetes-validations": rules }))
            .unwrap_or_else(|errors| panic!("{errors:#?}"));
    let object = json!({ "spec": [
        { "name": "a", "port": 80, "protocol": "HTTP", "hostname": "a.example.com" },
        { "name": "b", "port": 443, "protocol": "HTTPS", "tls": { "mode": "Terminate", "certificateRefs": [{}] } },
    ] });
    assert_eq!(lines(&validate(&schema, &object, None)), [""; 0]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    #[test]
    fn no_text_makes_the_parser_or_a_rule_panic(words in proptest::collection::vec(proptest::sample::select(&[
        "self", ".a", ".s", ".list", "(", ")", "[", "]", "{", "}", ",", ":", "?", ".", "!", "-", "+", "==", "&&", "||", " in ",
        "1", "1u", "1.5", "0x", "'", "\"", "r'", "b'", "\\", "\\x", "'a'", "has(", ".all(x, ", ".map(x, ", "x", "true", "null", "`",
        "é", "\n", "//", "\u{0}", "9999999999999999999", ".?a", "[?", "'\\u12'", "'\\400'", "1e999", "🦀",
    ][..]), 0..25)) {
        let text = words.concat();
        let schema = json!({ "type": "object", "properties": properties(), "x-kubernetes-validations": [{ "rule": text }] });
        match compiled(schema) {
            // What was accepted runs to an end, whatever it says.
            Ok(schema) => {
                validate(&schema, &json!({ "spec": spec() }), None);
            }
            Err(errors) => {
                proptest::prop_assert!(!errors[0].contains("the parser of CEL failed"), "{text:?}");
            }
        }
    }
}
