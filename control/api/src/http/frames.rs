//! The frames of a watch, where a watcher does not take the shared ones in JSON: tables, metadata alone, protobuf.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use serde_json::{Value, json};

use super::negotiate::{Output, OutputFormat, OutputShape};
use super::query::Query;
use super::respond;
use crate::registry::entry::ChangeType;
use crate::registry::watch::Frames;
use crate::resource::Resource;
use crate::schema::protobuf;
use crate::status::ApiError;
use crate::table;

/// How one watcher wants its frames.
pub struct WatchFrames {
    resource: Arc<Resource>,
    format: OutputFormat,
    shape: OutputShape,
    /// Those of a table.
    options: Option<table::Options>,
}

impl WatchFrames {
    /// The frames that a client asked for.
    ///
    /// # Errors
    ///
    /// 400 for bad parameters of a table.
    pub fn new(resource: Arc<Resource>, output: Output, query: &Query) -> Result<Self, ApiError> {
        let options = match output.shape {
            OutputShape::Table => Some(respond::table_options(query, Value::Null)?),
            OutputShape::Object | OutputShape::Partial => None,
        };
        Ok(Self {
            resource,
            format: output.format,
            shape: output.shape,
            options,
        })
    }

    fn shaped(&mut self, object: &Value) -> Value {
        match &mut self.options {
            None => table::partial_metadata(object),
            Some(options) => {
                options.now = jiff::Timestamp::now();
                options.metadata =
                    json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                let table = table::render(&self.resource, [object], options);
                options.headers = false;
                table
            }
        }
    }
}

impl Frames for WatchFrames {
    fn convert(&mut self, change: ChangeType, object: &Value) -> Option<Bytes> {
        if !self.converts() {
            return None;
        }
        let event = match change {
            ChangeType::Added => "ADDED",
            ChangeType::Modified => "MODIFIED",
            ChangeType::Deleted => "DELETED",
        };
        Some(match self.shape {
            OutputShape::Object => frame(self.format, event, object),
            OutputShape::Partial | OutputShape::Table => {
                frame(self.format, event, &self.shaped(object))
            }
        })
    }

    fn converts(&self) -> bool {
        self.shape != OutputShape::Object || self.format == OutputFormat::Protobuf
    }

    fn other(&mut self, event: &str, object: &Value) -> Bytes {
        match self.shape {
            OutputShape::Partial if event == "BOOKMARK" => {
                frame(self.format, event, &table::partial_metadata(object))
            }
            _ => frame(self.format, event, object),
        }
    }
}

/// The content type of a watch; text is always JSON.
pub fn content_type(format: OutputFormat) -> HeaderValue {
    HeaderValue::from_static(match format {
        OutputFormat::Json | OutputFormat::Yaml => "application/json",
        OutputFormat::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
    })
}

/// The frame of one event.
pub fn frame(format: OutputFormat, event: &str, object: &Value) -> Bytes {
    if format == OutputFormat::Protobuf {
        return protobuf_frame(event, object).into();
    }
    let mut out = BytesMut::from(format!(r#"{{"type":"{event}","object":"#).as_bytes());
    out.extend_from_slice(object.to_string().as_bytes());
    out.extend_from_slice(b"}\n");
    out.freeze()
}

/// The stream cannot change to JSON in its midst: an object without an encoding comes as an error that names the reason.
fn protobuf_frame(event: &str, object: &Value) -> Vec<u8> {
    match protobuf::encode_by_kind(object) {
        Ok(body) => protobuf::watch_frame(event, &body),
        Err(reason) => {
            let status = ApiError::new(406, "NotAcceptable", reason.to_string()).to_status();
            let body =
                protobuf::encode_by_kind(&status).expect("this Status has only known fields");
            protobuf::watch_frame("ERROR", &body)
        }
    }
}
