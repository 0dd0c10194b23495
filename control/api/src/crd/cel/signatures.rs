//! The functions that rules may call, with their types.
//!
//! A name that is not here is refused when the definition is made; [`super::library`] runs the ones that are. Sources:
//! cel-spec for the standard ones, cel-go `ext/strings.go` (version 2) and `ext/sets.go`, apiserver `pkg/cel/library`.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::types::Ty;

/// One way to call a function.
#[derive(Debug)]
pub struct Overload {
    /// Whether it is called on its first argument: `text.size()`.
    pub member: bool,
    /// A word for each argument.
    pub arguments: Vec<&'static str>,
    /// A word for what it returns.
    pub result: &'static str,
}

/// One function a line: its name (with a dot before it where it is called on its first argument), arguments with their
/// alternatives, and result. `T` is the item of the first argument, `A` its own type.
const TABLE: &str = "
size string|bytes|list|map = int
.size string|bytes|list|map = int
.contains string string = bool
.startsWith string string = bool
.endsWith string string = bool
matches string string = bool
.matches string string = bool
int int|uint|double|string|timestamp|duration = int
uint int|uint|double|string = uint
double int|uint|double|string = double
string bool|int|uint|double|string|bytes|timestamp|duration|url|ip|cidr|quantity = string
bool bool|string = bool
bytes string|bytes = bytes
timestamp string|timestamp|int = timestamp
duration string|duration = duration
dyn dyn = dyn
type dyn = type
.getFullYear timestamp = int
.getFullYear timestamp string = int
.getMonth timestamp = int
.getMonth timestamp string = int
.getDate timestamp = int
.getDate timestamp string = int
.getDayOfMonth timestamp = int
.getDayOfMonth timestamp string = int
.getDayOfWeek timestamp = int
.getDayOfWeek timestamp string = int
.getDayOfYear timestamp = int
.getDayOfYear timestamp string = int
.getHours timestamp|duration = int
.getHours timestamp string = int
.getMinutes timestamp|duration = int
.getMinutes timestamp string = int
.getSeconds timestamp|duration = int
.getSeconds timestamp string = int
.getMilliseconds timestamp|duration = int
.getMilliseconds timestamp string = int
.charAt string int = string
.indexOf string string = int
.indexOf string string int = int
.indexOf list dyn = int
.lastIndexOf string string = int
.lastIndexOf string string int = int
.lastIndexOf list dyn = int
.join list:string = string
.join list:string string = string
.lowerAscii string = string
.upperAscii string = string
.replace string string string = string
.replace string string string int = string
.split string string = list:string
.split string string int = list:string
.substring string int = string
.substring string int int = string
.trim string = string
.format string list = string
strings.quote string = string
.find string string = string
.findAll string string = list:string
.findAll string string int = list:string
.isSorted list = bool
.sum list = T
.min list = T
.max list = T
sets.contains list list = bool
sets.equivalent list list = bool
sets.intersects list list = bool
optional.none = optional:dyn
optional.of dyn = optional:A
optional.ofNonZeroValue dyn = optional:A
.hasValue optional = bool
.value optional = T
.or optional optional = A
.orValue optional dyn = T
url string = url
isURL string = bool
.getScheme url = string
.getHost url = string
.getHostname url = string
.getPort url = string
.getEscapedPath url = string
.getQuery url = map:list:string
quantity string = quantity
isQuantity string = bool
.sign quantity = int
.isInteger quantity = bool
.asInteger quantity = int
.asApproximateFloat quantity = double
.add quantity quantity|int = quantity
.sub quantity quantity|int = quantity
.isLessThan quantity quantity = bool
.isGreaterThan quantity quantity = bool
.compareTo quantity quantity = int
ip string = ip
isIP string = bool
ip.isCanonical string = bool
.family ip = int
.isUnspecified ip = bool
.isLoopback ip = bool
.isLinkLocalMulticast ip = bool
.isLinkLocalUnicast ip = bool
.isGlobalUnicast ip = bool
cidr string = cidr
isCIDR string = bool
.containsIP cidr ip|string = bool
.containsCIDR cidr cidr|string = bool
.ip cidr = ip
.masked cidr = cidr
.prefixLength cidr = int
format.named string = optional:format
format.dns1123Label = format
format.dns1123Subdomain = format
format.dns1035Label = format
format.qualifiedName = format
format.labelValue = format
format.uri = format
format.uuid = format
format.byte = format
format.date = format
format.datetime = format
.validate format string = optional:list:string
";

/// The words before a dot that belong to a function's name.
pub const NAMESPACES: [&str; 5] = ["format", "ip", "optional", "sets", "strings"];

/// The ways to call a function.
pub fn overloads(name: &str) -> &'static [Overload] {
    static PARSED: OnceLock<HashMap<&'static str, Vec<Overload>>> = OnceLock::new();
    let table = PARSED.get_or_init(|| {
        let mut table: HashMap<&str, Vec<Overload>> = HashMap::new();
        for line in TABLE.lines().filter(|line| !line.is_empty()) {
            let (call, result) = line.split_once(" = ").expect("every line has a result");
            let mut words = call.split(' ');
            let name = words.next().expect("every line has a name");
            let plain = name.strip_prefix('.');
            let overload = Overload {
                member: plain.is_some(),
                arguments: words.collect(),
                result,
            };
            table
                .entry(plain.unwrap_or(name))
                .or_default()
                .push(overload);
        }
        table
    });
    table.get(name).map_or(&[], Vec::as_slice)
}

/// The result of a call, if one of the ways to call the function fits.
pub fn resolve<'s>(name: &str, member: bool, arguments: &[Ty<'s>]) -> Option<Ty<'s>> {
    overloads(name)
        .iter()
        .find(|overload| {
            overload.member == member
                && overload.arguments.len() == arguments.len()
                && (overload.arguments.iter().zip(arguments))
                    .all(|(words, ty)| words.split('|').any(|word| ty.fits(word)))
        })
        .map(|overload| Ty::result(overload.result, arguments.first()))
}
