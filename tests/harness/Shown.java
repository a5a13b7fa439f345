// A transformation for a Kafka Connect worker (tests/harness/connect.rs): a record's value becomes a line of what its headers
// say by the names that Connect's own reporter of dead letters has, as the worker's header converter has read them.
//
// out: NAME of the constant=TYPE:value, with tabs between; a header that is not there is none

import java.lang.reflect.Field;
import java.util.Map;
import java.util.StringJoiner;
import org.apache.kafka.common.config.ConfigDef;
import org.apache.kafka.connect.connector.ConnectRecord;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.header.Header;
import org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter;
import org.apache.kafka.connect.transforms.Transformation;

public class Shown<R extends ConnectRecord<R>> implements Transformation<R> {
  @Override
  public R apply(R record) {
    StringJoiner line = new StringJoiner("\t");
    try {
      for (Field field : DeadLetterQueueReporter.class.getFields()) {
        if (!field.getName().startsWith("ERROR_HEADER")) continue;
        Header header = record.headers().lastWithName((String) field.get(null));
        if (header == null) continue;
        line.add(field.getName() + "=" + header.schema().type() + ":" + header.value());
      }
    } catch (IllegalAccessException why) {
      throw new IllegalStateException(why);
    }
    return record.newRecord(
        record.topic(), record.kafkaPartition(), record.keySchema(), record.key(),
        Schema.STRING_SCHEMA, line.toString(), record.timestamp());
  }

  @Override
  public ConfigDef config() {
    return new ConfigDef();
  }

  @Override
  public void configure(Map<String, ?> settings) {}

  @Override
  public void close() {}
}
