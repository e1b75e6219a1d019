//! The functions that expressions may call: what they take and give (upstream: CEL's standard library and
//! `k8s.io/apiserver/pkg/cel/library`).

use super::types::{LARGEST_REQUEST, Type};

/// `name(parameters)result`, or `receiver.name(parameters)result`; see [`named`] for the letters.
const SIGNATURES: &str = "
size(s)i size(y)i size(L)i size(M)i s.size()i y.size()i L.size()i M.size()i
s.contains(s)b s.startsWith(s)b s.endsWith(s)b s.matches(s)b matches(ss)b
bool(b)b bool(s)b bytes(y)y bytes(s)y double(d)d double(i)d double(u)d double(s)d
int(i)i int(u)i int(d)i int(s)i int(t)i int(n)i uint(u)u uint(i)u uint(d)u uint(s)u
string(s)s string(b)s string(i)s string(u)s string(d)s string(y)s string(t)s string(n)s
string(P)s string(C)s string(V)s timestamp(s)t timestamp(t)t timestamp(i)t duration(s)n duration(n)n duration(i)n
type(D)D dyn(D)D
t.getFullYear()i t.getMonth()i t.getDayOfYear()i t.getDayOfMonth()i t.getDate()i t.getDayOfWeek()i t.getHours()i
t.getMinutes()i t.getSeconds()i t.getMilliseconds()i n.getHours()i n.getMinutes()i n.getSeconds()i n.getMilliseconds()i
t.getFullYear(s)i t.getMonth(s)i t.getDayOfYear(s)i t.getDayOfMonth(s)i t.getDate(s)i t.getDayOfWeek(s)i t.getHours(s)i
t.getMinutes(s)i t.getSeconds(s)i t.getMilliseconds(s)i
s.charAt(i)s s.indexOf(s)i s.indexOf(si)i s.lastIndexOf(s)i s.lastIndexOf(si)i s.lowerAscii()s s.upperAscii()s
s.replace(ss)s s.replace(ssi)s s.split(s)S s.split(si)S s.substring(i)s s.substring(ii)s s.trim()s s.reverse()s
s.format(L)s strings.quote(s)s L.join()s L.join(s)s
L.isSorted()b L.sum()e L.min()e L.max()e L.indexOf(D)i L.lastIndexOf(D)i L.distinct()l L.flatten()L L.flatten(i)L
L.reverse()l L.sort()l L.slice(ii)l lists.range(i)I L.first()O L.last()O L.sortBy(D)l
s.find(s)s s.findAll(s)S s.findAll(si)S
url(s)U isURL(s)b U.getScheme()s U.getHost()s U.getHostname()s U.getPort()s U.getEscapedPath()s U.getQuery()M
ip(s)P isIP(s)b ip.isCanonical(s)b P.family()i P.isUnspecified()b P.isLoopback()b P.isLinkLocalMulticast()b
P.isLinkLocalUnicast()b P.isGlobalUnicast()b cidr(s)C isCIDR(s)b C.ip()P C.containsIP(s)b C.containsIP(P)b
C.containsCIDR(s)b C.containsCIDR(C)b C.masked()C C.prefixLength()i
quantity(s)Q isQuantity(s)b Q.sign()i Q.isInteger()b Q.asInteger()i Q.asApproximateFloat()d Q.add(Q)Q Q.add(i)Q
Q.sub(Q)Q Q.sub(i)Q Q.isLessThan(Q)b Q.isGreaterThan(Q)b Q.compareTo(Q)i
semver(s)V semver(sb)V isSemver(s)b isSemver(sb)b V.major()i V.minor()i V.patch()i V.isLessThan(V)b
V.isGreaterThan(V)b V.compareTo(V)i
format.named(s)O F.validate(s)O format.dns1123Label()F format.dns1123Subdomain()F format.dns1035Label()F
format.qualifiedName()F format.dns1123LabelPrefix()F format.dns1123SubdomainPrefix()F format.dns1035LabelPrefix()F
format.labelValue()F format.uri()F format.uuid()F format.byte()F format.date()F format.datetime()F
sets.contains(LL)b sets.equivalent(LL)b sets.intersects(LL)b
base64.encode(y)s base64.decode(s)y jsonpatch.escapeKey(s)s
math.greatest(D)D math.greatest(DD)D math.greatest(DDD)D math.least(D)D math.least(DD)D math.least(DDD)D
math.ceil(d)d math.floor(d)d math.round(d)d math.trunc(d)d math.abs(D)D math.sign(D)D math.sqrt(D)d math.isInf(d)b
math.isNaN(d)b math.isFinite(d)b math.bitAnd(DD)D math.bitOr(DD)D math.bitXor(DD)D math.bitNot(D)D
math.bitShiftLeft(Di)D math.bitShiftRight(Di)D
optional.of(D)O optional.none()O optional.ofNonZeroValue(D)O O.orValue(D)o O.hasValue()b O.value()o O.or(O)O
A.path(s)A A.group(s)A A.resource(s)A A.subresource(s)A A.namespace(s)A A.name(s)A A.fieldSelector(s)A
A.labelSelector(s)A A.serviceAccount(ss)A A.check(s)A A.allowed()b A.reason()s A.errored()b A.error()s
";

/// Names before a function that are no values.
pub const NAMESPACES: [&str; 10] = [
    "base64",
    "format",
    "ip",
    "jsonpatch",
    "lists",
    "math",
    "optional",
    "sets",
    "strings",
    "cel",
];

pub enum Missing {
    /// There is no such function.
    Function,
    /// There is, for other types.
    Overload,
}

/// What a call gives.
pub fn result(name: &str, target: Option<&Type>, args: &[Type]) -> Result<Type, Missing> {
    let mut is_known = false;
    for signature in SIGNATURES.split_whitespace() {
        let Some((called, rest)) = signature.split_once('(') else {
            continue;
        };
        let Some((parameters, gives)) = rest.split_once(')') else {
            continue;
        };
        let receiver = called.split_once('.').filter(|(receiver, _)| receiver.len() == 1);
        let own = receiver.map_or(called, |(_, name)| name);
        if own != name {
            continue;
        }
        is_known = true;
        let has_target = match (receiver, target) {
            (None, None) => true,
            (Some((letters, _)), Some(target)) => letters.chars().all(|letter| takes(letter, target)),
            _ => false,
        };
        if has_target
            && parameters.len() == args.len()
            && parameters
                .chars()
                .zip(args)
                .all(|(letter, arg)| takes(letter, arg))
        {
            return Ok(gives
                .chars()
                .next()
                .map_or(Type::Dyn, |letter| given(letter, target)));
        }
    }
    Err(if is_known {
        Missing::Overload
    } else {
        Missing::Function
    })
}

fn named(letter: char) -> Type {
    let list = |item| Type::List(Box::new(item), LARGEST_REQUEST);
    match letter {
        's' => Type::TEXT,
        'y' => Type::Bytes(LARGEST_REQUEST),
        'i' => Type::Int,
        'u' => Type::Uint,
        'd' => Type::Double,
        'b' => Type::Bool,
        't' => Type::Timestamp,
        'n' => Type::Duration,
        'L' => list(Type::Dyn),
        'S' => list(Type::TEXT),
        'I' => list(Type::Int),
        'M' => Type::Map(Box::new(Type::Dyn), Box::new(Type::Dyn), LARGEST_REQUEST),
        'O' => Type::Optional(Box::new(Type::Dyn)),
        'U' => Type::Opaque("kubernetes.URL"),
        'P' => Type::Opaque("net.IP"),
        'C' => Type::Opaque("net.CIDR"),
        'Q' => Type::Opaque("kubernetes.Quantity"),
        'V' => Type::Opaque("kubernetes.Semver"),
        'F' => Type::Opaque("kubernetes.NamedFormat"),
        'A' => Type::Opaque("kubernetes.authorization.Authorizer"),
        _ => Type::Dyn,
    }
}

fn takes(letter: char, given: &Type) -> bool {
    // What is merged from a map may be an object.
    named(letter).fits(given) && !(matches!(given, Type::Null) && letter != 'D')
}

fn given(letter: char, target: Option<&Type>) -> Type {
    match (letter, target) {
        // An item of the list, the list itself, what an optional holds.
        ('e', Some(Type::List(item, _))) => (**item).clone(),
        ('l', Some(list)) => list.clone(),
        ('o', Some(Type::Optional(inner))) => (**inner).clone(),
        // No longer than what it was made of.
        ('s', Some(Type::String(size))) => Type::String(*size),
        ('S', Some(Type::String(size))) => Type::List(Box::new(Type::String(*size)), *size),
        _ => named(letter),
    }
}
